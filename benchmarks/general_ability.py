"""How the embedded tasks of general ability were chosen: an unedited backbone on their items.

    python benchmarks/general_ability.py
    python benchmarks/general_ability.py --measured --count 16

Prints, for each task, the share of right answers on development items (`--measured`: on the items
that runs use), how it splits over answers where there are few, and the longest prompt in tokens.
"""

import argparse

import pandas as pd
import torch

from lib.backbones.sources import loading
from lib.data.records import Stream
from lib.editors import build
from lib.evaluation.evaluator import Evaluator, Protocol
from lib.evaluation.general import embedded


def main() -> None:
    """Scores every task once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="smollm2-135m")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--measured", action="store_true")
    chosen = parser.parse_args()
    backbone = loading.load(chosen.backbone, dtype=getattr(torch, chosen.dtype))
    found = embedded.probes(chosen.count, development=not chosen.measured)
    editor = build("ft", backbone, {"site": {"part": "mlp_out", "block": 0}})
    stream = Stream("general ability", (), 1, general=found)
    protocol = Protocol(evaluation_batch=20, decode=False)
    records = pd.DataFrame(Evaluator(editor, stream, protocol).records("general", "before", 0))
    records["task"] = [embedded.task_of(probe) for probe in found]
    records["right"] = records["answer_accuracy"] == 1
    records["tokens"] = [len(backbone.tokenizer(text)["input_ids"]) for text in records["prompt"]]
    for task, rows in records.groupby("task", sort=False):
        answers = rows.groupby("target")["right"].mean()
        split = ", ".join(f"{name} {share:.2f}" for name, share in answers.items())
        print(
            f"{task:12} right {rows['right'].mean():.2f} of {len(rows)}, "
            f"chance {embedded.TASKS[task].chance:.2f}, tokens {rows['tokens'].mean():.0f} "
            f"(at most {rows['tokens'].max()})" + (f"; {split}" if len(answers) <= 3 else "")
        )


if __name__ == "__main__":
    main()
