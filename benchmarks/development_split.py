"""How the laptop profile's settings were chosen: a grid on held-back facts.

    python benchmarks/development_split.py zsre-t5
    python benchmarks/development_split.py zsre-causal --only LoRA
    python benchmarks/development_split.py cf-consecutive --only COMEBA-HK
    python benchmarks/development_split.py counterfact --only ELDER
    python benchmarks/development_split.py facts --only UltraEdit
    python benchmarks/development_split.py facts --only WISE

The development stream takes facts that no profile of a processor edits: it begins behind the last
one that `overnight` can reach. Prints one row per candidate: success on edits and rephrases,
agreement on near and upstream questions; of ELDER also the digits by which the codes of a batch
miss their allocation.
"""

import argparse
import dataclasses
import itertools
import tempfile
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from lib.data.records import SUBSETS
from lib.data.streams import PromptStyle, stream_of
from lib.data.training import training_facts
from lib.editors import build
from lib.evaluation.evaluator import Evaluator, Protocol
from lib.evaluation.protocol import run_sequence
from lib.runs import plan
from lib.runs.resources import EVERY, Resources
from lib.storage.cache import Cache


class Split(NamedTuple):
    """A setting's page, the first record of its development facts, how many of these are edited,
    and of how many facts the backbone is asked where edits must be known to it."""

    paper: str
    first: int
    edits: int
    known: int | None = None


SPLITS = {
    "zsre-t5": Split("melo", 1200, 96),
    "zsre-causal": Split("melo", 1000, 60),
    "scotus": Split("melo", 1000, 60),
    "hallucination": Split("melo", 170, 24, known=2048),
    "cf-consecutive": Split("comeba_hk", 520, 60, known=4000),
    "counterfact": Split("elder", 520, 60, known=4000),
    "facts": Split("side_by_side", 520, 40, known=4000),
}
# Decoded answers for MELO's settings; what the second paper's tables show for its own.
METRICS = {
    "melo": ("exact_match", "agreement"),
    "comeba_hk": ("answer_accuracy", "answer_agreement"),
    "elder": ("answer_accuracy", "answer_agreement"),
    "side_by_side": ("begins_with", "agreement"),
    "hallucination": ("answer_nll_released", "answer_nll_released"),  # the lower, the better
}
GRIDS: dict[str, dict[str, dict[str, list]]] = {
    "zsre-t5": {
        "MELO": {"radius": [75.0, 150.0, 250.0]},
        "MELO intended": {"radius": [15.0, 30.0, 75.0, 150.0]},
        "GRACE": {"radius": [3.0, 10.0]},
        "LoRA": {"lr": [1e-3, 3e-3, 1e-2]},
        "FT": {"lr": [1e-3, 3e-3, 1e-2]},
        "Defer": {"lr": [1e-3, 1e-2, 1e-1]},
        "MEND": {"eta": [1e-5, 1e-4], "meta_lr": [1e-5, 1e-4]},
    },
    "zsre-causal": {
        "MELO intended": {"radius": [20.0, 30.0, 40.0], "lr": [2e-3, 5e-3]},
        "GRACE": {"radius": [3.0, 10.0]},
        "LoRA": {"lr": [1e-3, 5e-3]},
        "FT": {"lr": [3e-4, 1e-3]},
    },
    "scotus": {
        "MELO": {"radius": [0.1, 2.0], "lr": [3e-3, 1e-2]},
        "GRACE": {"radius": [0.5, 1.0, 2.0]},
        "LoRA": {"lr": [3e-4, 1e-3, 3e-3]},
        "FT": {"lr": [3e-4, 1e-3, 1e-2]},
        "Defer": {"lr": [1e-3, 1e-2, 1e-1]},
        "MEND": {"eta": [1e-4, 1e-3], "meta_lr": [1e-5, 1e-4]},
    },
    "hallucination": {
        "MELO intended": {"lr": [5e-3, 1e-2]},
        "LoRA": {"lr": [1e-3, 2e-3]},
        "FT": {"lr": [5e-4, 1e-3]},
        "Defer": {"lr": [1e-2, 1e-1]},
    },
    "cf-consecutive": {
        "COMEBA-HK": {"moment_weight": [500.0, 1000.0, 4000.0], "value_steps": [15]},
        "MEMIT": {"moment_weight": [500.0, 1000.0, 4000.0], "value_steps": [15]},
        "FT": {
            "site": [{"part": "mlp_out", "block": 26}],
            "lr": [1e-3, 3e-3],
        },
        "GRACE": {"radius": [3.0, 10.0]},
    },
    "counterfact": {
        "ELDER": {"lr": [1e-4, 5e-4, 2e-3], "guide_weight": [1e-2, 1e-1, 1.0]},
        "MELO": {"radius": [30.0, 60.0]},
        "GRACE": {"radius": [10.0, 20.0]},
        "FT-L": {"lr": [5e-4, 1.5e-3]},
        "LoRA": {"lr": [1e-3, 5e-3]},
    },
    "facts": {
        "UltraEdit": {"eta": [2e-4, 3e-4, 5e-4, 7e-4, 1e-3, 1.4e-3]},
        "RLEdit": {"eta": [3e-4], "meta_lr": [3e-5, 1e-4]},
        "MEMIT": {"history": ["none", "one"]},
        "AlphaEdit": {"threshold": [0.2, 0.5], "moment_weight": [0.3, 1.0, 3.0]},
        "WISE": {
            "site": [{"part": "mlp_out", "block": 25}, {"part": "mlp_out", "block": 27}],
            "act_ratio": [0.5, 0.65, 0.8],
        },
    },
}


def main() -> None:
    """Runs the grid of one setting of the laptop profile."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("setting", choices=GRIDS)
    parser.add_argument("--only", help="one editor")
    options = parser.parse_args()
    split = SPLITS[options.setting]
    metrics = METRICS.get(options.setting, METRICS[split.paper])
    runs = plan.runs(split.paper, "laptop", seeds=1)
    chosen = {r.editor: r for r in runs if r.setting == options.setting and not r.sweep}
    resources, rows = Resources(), []
    spec = dict(next(iter(chosen.values())).spec)
    if split.known:
        spec["known"] = split.known
    name, documents = spec["dataset"]["name"], spec["stream"].get("kind") == "documents"
    taken = resources.materials(spec, ("corpus", "training") if documents else ("corpus",))
    backbone, reported = taken.backbone, taken.dataset
    more = reported if "known" in spec else resources.read(name, 2 * split.first, None, None)
    dataset = dataclasses.replace(
        more, edits=more.edits[split.first :], upstream=reported.upstream, near=reported.near
    )
    sized = {**spec["stream"], "n_edits": split.edits, "first": None}
    stream = stream_of({**spec, "stream": sized}, dataset)
    print(f"{len(stream.edits)} edits of the {len(dataset.edits)} facts from {split.first} on")
    training = taken.learned  # of documents that are never edited
    if "training" in spec and not documents:
        rest = resources.read(name, EVERY, None, None).edits[split.first :]
        training = training_facts(
            dataclasses.replace(dataset, edits=rest),
            stream,
            n_train=spec["training"]["n_train"],
            n_valid=spec["training"]["n_valid"],
            style=PromptStyle.of(spec["stream"]),
            held_out=spec["stream"].get("max_rephrases", 1),
        )
    bases: dict[bool, dict] = {True: {}, False: {}}
    protocol = Protocol(**{**spec["protocol"], "checkpoint_every": 0, "observe": False})
    with tempfile.TemporaryDirectory() as blocks:
        for editor, grid in GRIDS[options.setting].items():
            if options.only not in (None, editor):
                continue
            for values in itertools.product(*grid.values()):
                changed = dict(zip(grid, values, strict=True))
                run = chosen[editor].spec
                made = build(
                    run["editor"],
                    backbone,
                    run["config"] | changed,
                    blocks_cache=Cache(Path(blocks)),
                    values_cache=Cache(Path(blocks)),
                    corpus=taken.corpus,
                    training=training,
                )
                records: list[dict] = []
                steps: list[dict] = []
                base = bases[made.scope_sees_target]
                evaluator = Evaluator(made, stream, protocol, before=base, kept=taken.kept)
                clock = run_sequence(
                    made,
                    stream,
                    protocol,
                    evaluator,
                    write_record=records.append,
                    write_step=steps.append,
                    after_batch=lambda done: None,
                )
                made.close()
                frame = pd.DataFrame(records).query("moment == 'end'")
                row = {"editor": editor, **changed, "seconds": round(clock.edit, 1)}
                for subset in SUBSETS:
                    metric = metrics[subset not in ("edits", "holdout")]
                    row[f"{subset} {metric}"] = frame.query("subset == @subset")[metric].mean()
                if "digits_from_allocation" in steps[-1]:
                    row["digits"] = pd.DataFrame(steps)["digits_from_allocation"].mean()
                rows.append(row)
                print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()})
    print(pd.DataFrame(rows).to_string(index=False, float_format=lambda value: f"{value:.3g}"))


if __name__ == "__main__":
    main()
