"""General ability before and after editing on the tasks of ELDER's Tables 7 to 10 (elder 5).

The eight published tasks (`lib.data.general_files`), and those of the embedded data under their own
names (`lib.data.general`), run by lm-eval (`lib.harness`) where a setting's protocol names them.
Without that optional extra, the rows of the subset "general" measure the embedded tasks.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib import atomic, fingerprints, general_scores
from lib.data import general, general_files
from lib.data.general_files import FOLDER, Question
from lib.data.records import content_hash
from lib.editors.base import Editor
from lib.errors import UsageError
from lib.evaluation import Protocol
from lib.harness import Scoring, run

EMBEDDED_ITEMS = 100  # of each embedded task, where no limit is given
PUBLISHED = {
    "gsm8k": Scoring("GSM8K", "solve rate", 5, general_scores.holds_number),
    "rte": Scoring("RTE", "2-way accuracy", 1, general_scores.says("true", "false")),
    "nq": Scoring("NQ", "accuracy with reference answer", 20, general_scores.holds_answer),
    "boolq": Scoring("BoolQ", "exact match", 1, general_scores.equals),
    "mutual": Scoring("MuTual", "4-way choice accuracy", 1, general_scores.holds_letter),
    "samsum": Scoring("SAMSum", "mean of ROUGE-1/2/L", 25, general_scores.rouge),
    "conll03": Scoring("CoNLL03", "entity recall", 10, general_scores.share_found),
    "sst2": Scoring("SST2", "2-way accuracy", 1, general_scores.says("positive", "negative")),
}
EMBEDDED = {name: Scoring("", "exact match", 10, general_scores.begins) for name in general.TASKS}
TASKS = {**PUBLISHED, **EMBEDDED}


def readable(names: Sequence[str], data_dir: Path | None) -> list[str]:
    """Those of the named tasks whose files can be there: published ones need a folder `general/`
    in the data folder. Raises UsageError for an unknown name."""
    for name in names:
        if name not in TASKS:
            raise UsageError(f"there is no general task {name!r}; known: {', '.join(TASKS)}")
    given = data_dir is not None and (data_dir / FOLDER).is_dir()
    return [name for name in names if given or name in EMBEDDED]


def questions(
    name: str, data_dir: Path | None, limit: int | None = None, *, strict: bool = True
) -> list[Question]:
    """The first `limit` prompts of a task. Raises UsageError for a published one without data
    folder, RecordError for missing or malformed files."""
    if name in EMBEDDED:
        found = general.probes(limit or EMBEDDED_ITEMS)
        return [Question(p.prompt, (p.target,)) for p in found if general.task_of(p) == name]
    if data_dir is None:
        raise UsageError(f"the general task {name} is read from --data-dir, folder {FOLDER}/{name}")
    return general_files.questions(name, data_dir / FOLDER, strict=strict)[:limit]


@dataclass
class GeneralTasks:
    """The general tasks of a run's protocol, of which at most `lm_eval_limit` prompts are asked.

    `files` is the content hash of the published files. The scores of the unedited backbone are
    computed for the first editor and kept in the folder `kept` for the others.
    """

    editor: Editor
    protocol: Protocol
    data_dir: Path | None
    files: str
    strict: bool
    kept: Path

    def rows(self, moment: str) -> list[dict[str, Any]]:
        """The rows of `lib.harness.run` with their "moment" ("before" or "end") as the model is
        now; none if the protocol names no task. Raises what `questions` and `run` raise."""
        if not self.protocol.lm_eval:
            return []
        if moment != "before":
            return self._measured(moment)
        path = self._kept()
        try:
            return json.loads(path.read_text("utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            rows = self._measured(moment)
            atomic.write_text(path, json.dumps(rows))
            return rows

    def _measured(self, moment: str) -> list[dict[str, Any]]:
        limit, size = self.protocol.lm_eval_limit, self.protocol.evaluation_batch
        tasks = {
            name: (TASKS[name], questions(name, self.data_dir, limit, strict=self.strict))
            for name in self.protocol.lm_eval
        }
        return [row | {"moment": moment} for row in run(self.editor, tasks, size)]

    def _kept(self) -> Path:
        backbone, protocol = self.editor.backbone, self.protocol
        decides = [
            *(backbone.content, str(backbone.dtype), str(backbone.device), self.files),
            *(list(protocol.lm_eval), protocol.lm_eval_limit, protocol.evaluation_batch),
            *(fingerprints.code("lib.general_ability"), fingerprints.versions()),
        ]
        return self.kept / f"general-{content_hash(decides)[:24]}.json"
