"""General ability before and after editing on the tasks of ELDER's Tables 7 to 10 (elder 5).

lm-eval, an optional extra, runs its own tasks of these names, and two of ours that it lacks
(`own_tasks`), where a setting's protocol names them. Wording and scorer are the harness's, so
levels are not the paper's. The rows of the subset "general" measure embedded tasks instead.
"""

import importlib.metadata
import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lib.editors.base import Editor
from lib.errors import UsageError
from lib.evaluation.evaluator import Protocol
from lib.evaluation.general import own_tasks
from lib.storage import fingerprints
from lib.storage.cache import Cache

FOLDER = "general"


@dataclass(frozen=True)
class Published:
    """A task: its name in the paper's tables, the harness's name of the metric in its results, and
    what is changed of its configuration."""

    title: str
    metric: str
    changes: Mapping[str, Any] = field(default_factory=dict)


# The scorer of MuTual in lm-eval 0.4.13 takes an argmax over (log-likelihood, greedy) pairs laid
# end to end, which nearly always picks the second candidate; `acc` is the harness's own of choices.
_CHOICE = {
    "process_results": None,
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
PUBLISHED = {
    "gsm8k": Published("GSM8K", "exact_match,flexible-extract"),
    "rte": Published("RTE", "acc,none"),
    "nq_open": Published("NQ", "exact_match,remove_whitespace"),
    "boolq": Published("BoolQ", "acc,none"),
    "mutual": Published("MuTual", "acc,none", _CHOICE),
    "samsum": Published("SAMSum", "rouge,none"),
    "conll03": Published("CoNLL03", "entity_recall,none"),
    "sst2": Published("SST2", "acc,none"),
}


def installed() -> bool:
    """Whether the extra is there."""
    return importlib.util.find_spec("lm_eval") is not None


def readable(names: Sequence[str], data_dir: Path | None, source: str) -> list[str]:
    """The named tasks if a run is to ask them, else none: with a data folder where it has a folder
    `general/`, without one where data come from the hub and the extra is installed. Raises
    UsageError for an unknown name."""
    for name in names:
        if name not in PUBLISHED:
            raise UsageError(f"there is no general task {name!r}; known: {', '.join(PUBLISHED)}")
    if data_dir is None:
        return list(names) if source == "hub" and installed() else []
    return list(names) if (data_dir / FOLDER).is_dir() else []


def identity(data_dir: Path | None) -> dict[str, Any]:
    """What decides the tasks' results beside our code: given files, the harness, our tasks."""
    files = None if data_dir is None else fingerprints.folder(data_dir.resolve() / FOLDER)
    version = importlib.metadata.version("lm-eval") if installed() else None
    return {"files": files, "lm_eval": version, "tasks": own_tasks.content()}


@dataclass
class GeneralTasks:
    """The general tasks of a run's protocol, of which at most `lm_eval_limit` items are asked.

    `identity` is what the function of that name gave. The scores of the unedited backbone are
    computed for the first editor and kept in `cache` for the others.
    """

    editor: Editor
    protocol: Protocol
    data_dir: Path | None
    identity: Mapping[str, Any]
    cache: Cache

    def rows(self, moment: str) -> list[dict[str, Any]]:
        """The rows of `harness.run` with "kind" ("lm_eval") and "moment" ("before" or "end"), as
        the model is now; none if the protocol names no task. Raises what `run` raises, and
        UsageError without lm-eval and for a backbone that is no causal language model."""
        if not self.protocol.lm_eval:
            return []
        if moment != "before":
            return self._measured(moment)

        def measure() -> bytes:
            return json.dumps(self._measured(moment)).encode()

        return json.loads(self.cache.file("general", self._identity(), measure))

    def _measured(self, moment: str) -> list[dict[str, Any]]:
        if not installed():
            raise UsageError(
                "general tasks are run by lm-eval, an optional extra: `pip install -e "
                "'.[general]'` in this project, or leave lm_eval out of the setting's protocol"
            )
        backbone, protocol = self.editor.backbone, self.protocol
        if backbone.family.kind != "causal":
            raise UsageError(
                f"{backbone.name} is a {backbone.family.kind} backbone; general tasks are for "
                "causal language models"
            )
        from lib.evaluation.general import harness

        tasks = {
            name: (PUBLISHED[name].metric, PUBLISHED[name].changes) for name in protocol.lm_eval
        }
        folder = None if self.data_dir is None else self.data_dir / FOLDER
        limit, size = protocol.lm_eval_limit, protocol.evaluation_batch
        found = harness.run(self.editor, tasks, folder, limit, size)
        return [{"kind": "lm_eval", "moment": moment, **row} for row in found]

    def _identity(self) -> list[object]:
        backbone, protocol = self.editor.backbone, self.protocol
        return [
            *(backbone.arithmetic, dict(self.identity)),
            *(list(protocol.lm_eval), protocol.lm_eval_limit, protocol.evaluation_batch),
            fingerprints.code("lib.evaluation.general.ability", apart=fingerprints.TOLD),
        ]
