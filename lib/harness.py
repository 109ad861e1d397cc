"""The lm-eval harness on an edited model in memory, over prompts in memory (an optional extra).

The model is asked as it stands, its hooks and adapters in force, zero-shot and greedily. Rows are
padded on the left, so that a prompt's last token, which editors route by, is the last column; a
prompt longer than the model's positions loses its beginning.
"""

import contextlib
import copy
import importlib.util
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lib.data.general_files import Question
from lib.editors.base import Editor
from lib.errors import UsageError
from lib.general_scores import mean_recall


@dataclass(frozen=True)
class Scoring:
    """How a task is answered and scored: so many new tokens, then `score(text, gold answers)`.
    `title` is the task's name in the paper's tables ("": not there)."""

    title: str
    metric: str
    new_tokens: int
    score: Callable[[str, Sequence[str]], float]


def installed() -> bool:
    """Whether the extra is there."""
    return importlib.util.find_spec("lm_eval") is not None


def run(
    editor: Editor, tasks: dict[str, tuple[Scoring, list[Question]]], batch_size: int
) -> list[dict[str, Any]]:
    """One row per task: "kind" ("lm_eval"), "task", "metric", "value" (a fraction), "stderr" (None
    where types of answers are averaged), "n" (prompts).

    Raises UsageError without lm-eval and for a backbone that is no causal language model.
    """
    if not installed():
        raise UsageError(
            "general tasks are run by lm-eval, an optional extra: `pip install -e '.[general]'` in "
            "this project, or leave lm_eval out of the setting's protocol"
        )
    backbone = editor.backbone
    if backbone.family.kind != "causal":
        raise UsageError(
            f"{backbone.name} is a {backbone.family.kind} backbone; general tasks are for causal "
            "language models"
        )
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM

    with _quiet():
        model = HFLM(
            pretrained=editor.model,
            tokenizer=copy.deepcopy(backbone.tokenizer),  # the harness sets padding of its own
            backend="causal",
            batch_size=batch_size,
        )
        made = {
            name: _task(name, scoring, items, backbone.prefix)
            for name, (scoring, items) in tasks.items()
        }
        found = evaluator.evaluate(model, {"tasks": made, "groups": {}}, log_samples=False)
    rows = []
    for name, (scoring, items) in tasks.items():
        result = found["results"][name]
        error = result["score_stderr,none"]  # "N/A" where the harness knows none
        rows.append(
            {
                "kind": "lm_eval",
                "task": name,
                "metric": scoring.metric,
                "value": float(result["score,none"]),
                "stderr": None if isinstance(error, str) else float(error),
                "n": len(items),
            }
        )
    return rows


def _task(name: str, scoring: Scoring, items: list[Question], prefix: str) -> Any:
    """The harness's task over some prompts; questions of several types are averaged by type."""
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    columns = {
        "prompt": [prefix + item.prompt for item in items],
        "gold": [list(item.gold) for item in items],
        "group": [item.group for item in items],
    }
    grouped = any(columns["group"])

    def score(doc: dict[str, Any], answers: list[str]) -> dict[str, Any]:
        value = scoring.score(answers[0], doc["gold"])
        return {"score": (doc["group"], value, len(doc["gold"])) if grouped else value}

    metric = {
        "metric": "score",
        "aggregation": mean_recall if grouped else "mean",
        "higher_is_better": True,
    }
    return ConfigurableTask(
        config={
            "task": name,
            "custom_dataset": lambda: {"test": Dataset.from_dict(columns)},
            "test_split": "test",
            "doc_to_text": lambda doc: doc["prompt"],
            "doc_to_target": lambda doc: doc["gold"][0],
            "process_results": score,
            "metric_list": [metric],
            "output_type": "generate_until",
            "generation_kwargs": {
                "until": [],
                "max_gen_toks": scoring.new_tokens,
                "do_sample": False,
            },
            "num_fewshot": 0,
        }
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the harness's warnings about models in memory and tasks of our own."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
