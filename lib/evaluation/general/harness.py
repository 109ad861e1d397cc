"""lm-eval's tasks on an edited model in memory (an optional extra; import it only where it is).

The model is asked as it stands, its hooks and adapters in force, greedily. Rows are padded on the
left, so that a prompt's last token, which editors route by, is the last column; a prompt longer
than the model's positions loses its beginning.
"""

import contextlib
import copy
import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lm_eval
import torch
from lm_eval.api.task import Task
from lm_eval.defaults import DEFAULT_OTHER_SEED
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import DynamicCache

from lib.backbones.encoding import IGNORED, batch_rows, pad
from lib.backbones.passes.logits import scores_at
from lib.editors.base import Editor
from lib.errors import RecordError
from lib.evaluation.general import own_tasks


class EditedModel(HFLM):
    """The harness's model class over the model of an editor.

    Given answers are scored as continuations of a pass over the prompts, so that an editor decides
    on the prompt, as it does in `generate`. The harness would read prompt and answer in one pass,
    filled up on the right without a mask: a route would be taken from the answer or the filling.
    """

    def __init__(self, editor: Editor, batch_size: int) -> None:
        self.backbone = editor.backbone
        super().__init__(
            pretrained=editor.model,
            tokenizer=copy.deepcopy(editor.backbone.tokenizer),  # padding is set on it
            backend="causal",
            batch_size=batch_size,
        )

    def tok_encode(self, string: str, *args: Any, **options: Any) -> list[int]:
        """Token ids of a text behind the backbone's document prefix."""
        return super().tok_encode(self.backbone.prefix + string, *args, **options)

    def tok_batch_encode(self, strings: Sequence[str], *args: Any, **options: Any) -> Any:
        """Padded ids and mask of texts, each behind the backbone's document prefix."""
        begun = [self.backbone.prefix + string for string in strings]
        return super().tok_batch_encode(begun, *args, **options)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of each request's answer, and whether greedy decoding would give it."""
        order = sorted(range(len(requests)), key=lambda number: len(requests[number][1]))
        size = override_bs or self.batch_size
        found: dict[int, tuple[float, bool]] = {}
        for start in range(0, len(order), size):
            some = order[start : start + size]
            scored = self._continued([requests[number][1:] for number in some])
            found |= zip(some, scored, strict=True)
        return [found[number] for number in range(len(requests))]

    @torch.no_grad()
    def _continued(
        self, pairs: Sequence[tuple[list[int], list[int]]]
    ) -> Iterator[tuple[float, bool]]:
        """`_loglikelihood_tokens` of one batch: ids of prompts and of answers."""
        answers = [answer for _, answer in pairs]
        over = [len(prompt) + len(answer) - 1 - self.max_length for prompt, answer in pairs]
        prompts = [prompt[max(0, cut) :] for (prompt, _), cut in zip(pairs, over, strict=True)]
        batch = batch_rows(self.backbone, prompts, [len(row) for row in prompts], "left")
        targets = pad(answers, IGNORED).to(self.backbone.device)
        call = functools.partial(self.model, past_key_values=DynamicCache(), use_cache=True)
        logits = call(**batch.inputs(), position_ids=batch.positions(), logits_to_keep=1).logits
        if targets.shape[1] > 1:
            fed = targets[:, :-1]
            mask = torch.cat([batch.attention_mask, (fed != IGNORED).long()], dim=1)
            positions = (mask.cumsum(dim=1) - 1)[:, -fed.shape[1] :]
            more = call(input_ids=fed.clamp(min=0), attention_mask=mask, position_ids=positions)
            logits = torch.cat([logits, more.logits], dim=1)
        real = targets != IGNORED
        scores = scores_at(logits[real], targets[real], real.sum(dim=1).tolist())
        rows = zip(scores.token_nll, scores.argmax, scores.ids, strict=True)
        return ((-sum(nll), argmax == ids) for nll, argmax, ids in rows)


def run(
    editor: Editor,
    tasks: Mapping[str, tuple[str, Mapping[str, Any]]],
    folder: Path | None,
    limit: int | None,
    batch_size: int,
) -> list[dict[str, Any]]:
    """One row per task: "task", "metric", "value" (a fraction), "stderr" (None where the harness
    knows none), "n", "shots", "task_version", "harness" (lm-eval's version).

    `tasks`: of each name the metric, as the harness names it in its results, and what is changed
    of the task. Data: the task's own folder in `folder` if it is there, else the hub. At most
    `limit` items of a task are asked. RecordError if a data set cannot be read.
    """
    with _quiet():
        made = {name: _task(name, changes, folder) for name, (_, changes) in tasks.items()}
        model = EditedModel(editor, batch_size)
        found = evaluate(model, {"tasks": made, "groups": {}}, limit=limit, log_samples=False)
    rows = []
    for name, (metric, _) in tasks.items():
        kind, _, chosen = metric.partition(",")
        results = found["results"][name]
        error = results[f"{kind}_stderr,{chosen}"]  # "N/A" where the harness knows none
        rows.append(
            {
                "task": name,
                "metric": metric.removesuffix(",none"),
                "value": float(results[metric]),
                "stderr": None if isinstance(error, str) else float(error),
                "n": found["n-samples"][name]["effective"],
                "shots": found["n-shot"][name],
                "task_version": str(found["versions"][name]),
                "harness": lm_eval.__version__,
            }
        )
    return rows


def _task(name: str, changes: Mapping[str, Any], folder: Path | None) -> Task:
    """The harness's task of that name, or ours."""
    # Nobody trains here; where examples are shown, `fewshot_split` says where they come from.
    changed = {"task": name, "training_split": None, **changes}
    own = folder / name if folder is not None else None
    if own is not None and own.is_dir():
        changed |= {"dataset_path": str(own), "dataset_name": None, "dataset_kwargs": None}
    group = {"group": "general", "task": [changed]}  # in a group, changes are laid over the task
    try:
        task = _manager().load([group])["tasks"][name]
    except Exception as error:  # of the harness, of `datasets` and of the network: any kind
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        where = own if "dataset_path" in changed else "the model hub"
        raise RecordError(
            f"the general task {name} cannot be read from {where} ({said}). Put the hub's data set "
            f"into general/{name} of --data-dir: files with its columns, named by split (README, "
            "Published data)"
        ) from error
    task.set_fewshot_seed(DEFAULT_OTHER_SEED)
    return task


@functools.cache
def _manager() -> TaskManager:
    return TaskManager(include_path=own_tasks.FOLDER)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the harness's warnings about models in memory and changed tasks."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
