"""How the laptop profile's radius and learning rates were chosen: a grid on held-back facts.

    python benchmarks/development_split.py zsre-t5
    python benchmarks/development_split.py zsre-causal --only LoRA

The development stream takes facts from number 300 on; the reported runs use the first ones. Prints
one row per candidate: edit success, held-out generality, agreement on near and upstream questions.
"""

import argparse
import dataclasses
import itertools
import tempfile
from pathlib import Path

import pandas as pd

from lib import plan
from lib.editors import build
from lib.execute import Shared, stream_of
from lib.protocol import SUBSETS, Evaluator, Protocol, run_sequence

FIRST = 300
GRIDS: dict[str, dict[str, dict[str, list]]] = {
    "zsre-t5": {
        "MELO": {"radius": [75.0, 150.0, 250.0, 350.0]},
        "MELO intended": {"radius": [12.0, 20.0, 30.0]},
        "GRACE": {"radius": [3.0, 10.0]},
        "LoRA": {"lr": [1e-3, 3e-3, 1e-2]},
        "FT": {"lr": [1e-3, 3e-3, 1e-2]},
    },
    "zsre-causal": {
        "MELO intended": {"radius": [20.0, 30.0, 40.0], "lr": [2e-3, 5e-3]},
        "GRACE": {"radius": [3.0, 10.0]},
        "LoRA": {"lr": [1e-3, 5e-3]},
        "FT": {"lr": [3e-4, 1e-3]},
    },
}


def main() -> None:
    """Runs the grid of one setting of the laptop profile."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("setting", choices=GRIDS)
    parser.add_argument("--only", help="one editor")
    options = parser.parse_args()
    runs = plan.runs("melo", "laptop", seeds=1)
    chosen = {r.editor: r for r in runs if r.setting == options.setting and not r.sweep}
    shared, rows = Shared(), []
    spec = next(iter(chosen.values())).spec
    backbone, dataset = shared.backbone(spec), shared.dataset(spec["dataset"]["name"], 2 * FIRST)
    dataset = dataclasses.replace(
        dataset, edits=dataset.edits[FIRST:], upstream=shared.edits_of(spec).upstream
    )
    stream, base, passes = stream_of(spec, dataset), {}, {}
    protocol = Protocol(**{**spec["protocol"], "checkpoint_every": 0})
    with tempfile.TemporaryDirectory() as blocks:
        for editor, grid in GRIDS[options.setting].items():
            if options.only not in (None, editor):
                continue
            for values in itertools.product(*grid.values()):
                changed = dict(zip(grid, values, strict=True))
                run = chosen[editor].spec
                made = build(
                    run["editor"], backbone, run["config"] | changed, blocks_cache=Path(blocks)
                )
                records: list[dict] = []
                evaluator = Evaluator(made, stream, protocol, base=base, passes=passes)
                clock = run_sequence(
                    made,
                    stream,
                    protocol,
                    evaluator,
                    write_record=records.append,
                    write_step=lambda step: None,
                    after_batch=lambda done: None,
                )
                made.close()
                frame = pd.DataFrame(records).query("moment == 'end'")
                row = {"editor": editor, **changed, "seconds": round(clock.edit, 1)}
                for subset in SUBSETS:
                    metric = "exact_match" if subset in ("edits", "holdout") else "agreement"
                    row[f"{subset} {metric}"] = frame.query("subset == @subset")[metric].mean()
                rows.append(row)
                print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()})
    print(pd.DataFrame(rows).to_string(index=False, float_format=lambda value: f"{value:.3g}"))


if __name__ == "__main__":
    main()
