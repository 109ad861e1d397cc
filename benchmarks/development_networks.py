"""How the laptop profile's step size and learning rate of MALMEN and MEND were chosen.

    python benchmarks/development_networks.py zsre
    python benchmarks/development_networks.py fever --only MEND

Trains one network per candidate, as the profile would, and scores it on the validation facts (no
table uses them): edit success, generality, locality and their mean. The best mean is the choice.
"""

import argparse

import pandas as pd

from lib.editors import build
from lib.editors.hypernet.training import trained_network
from lib.runs import plan
from lib.runs.resources import Resources

# (step size, learning rate): what was left of wider grids with longer training
GRIDS = {
    "zsre": {
        "MALMEN": ((3e-4, 1e-4), (1e-3, 1e-4)),
        "MEND": ((1e-6, 3e-5), (1e-6, 1e-4)),
    },
    "fever": {
        "MALMEN": ((1e-4, 1e-4), (1e-3, 1e-4), (1e-3, 3e-5)),
        "MEND": ((3e-6, 3e-5), (1e-5, 3e-5), (1e-5, 1e-5)),
    },
}  # fmt: skip
SCORES = ("valid_ES", "valid_GS", "valid_LS")


def candidates(setting: str, editor: str) -> pd.DataFrame:
    """One row per step size and learning rate: validation scores after training."""
    runs = plan.runs("malmen", "laptop", seeds=1, device="cpu")
    run = next(r for r in runs if (r.setting, r.editor, r.sweep) == (setting, editor, ""))
    made_of = Resources().materials(run.spec)
    rows = []
    for eta, meta_lr in GRIDS[setting][editor]:
        config = run.spec["config"] | {"eta": eta, "meta_lr": meta_lr, "validate_every": 0}
        made = build(
            run.spec["editor"],
            made_of.backbone,
            config,
            training=made_of.learned,
            kept=made_of.kept,
        )
        record = trained_network(made, config["train_m"]).record
        scores = {name: record.curve[-1][name] for name in SCORES}
        mean = sum(scores.values()) / len(scores)
        rows.append({"editor": editor, "eta": eta, "meta_lr": meta_lr, **scores, "mean": mean})
        print(rows[-1] | {"seconds": round(record.seconds)}, flush=True)
        made.close()
    return pd.DataFrame(rows)


def main() -> None:
    """Prints the grid of one setting."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("setting", choices=sorted(GRIDS))
    parser.add_argument("--only", help="one editor")
    given = parser.parse_args()
    editors = [given.only] if given.only else list(GRIDS[given.setting])
    found = pd.concat([candidates(given.setting, editor) for editor in editors])
    print(found.round(4).to_string(index=False))


if __name__ == "__main__":
    main()
