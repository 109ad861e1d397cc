"""General ability after editing: ELDER's Tables 2 and 7 to 10, on the benchmark or on stand-ins.

The benchmark's own tasks, where they were run, are observations of kind "lm_eval"; the embedded
stand-ins are scored like all other prompts (subset "general"). Scores are percent.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from lib.evaluation.general import embedded
from lib.evaluation.general.ability import PUBLISHED
from lib.report import tables
from lib.report.reported import reported_value
from lib.report.tables import UNEDITED_MODEL
from lib.runs.study import Study
from papers import common
from papers.elder.scores import OWN, Line, lines, scored, told_as

Z = 1.96
MEAN = "mean of tasks"


@dataclass(frozen=True)
class Task:
    """A task that was scored: its key, how the page calls it, and the paper's name for what it is
    or stands for ("": nothing)."""

    key: str
    title: str
    reported: str


@dataclass(frozen=True)
class Ability:
    """What a setting's runs scored: rows of the harness (`own`, the paper's tasks), or records of
    the stand-ins."""

    study: Study
    setting: str
    rows: pd.DataFrame
    tasks: tuple[Task, ...]
    own: bool

    @classmethod
    def of(cls, study: Study, setting: str) -> "Ability":
        """The benchmark's tasks where they were run, else the stand-ins."""
        seen = study.observations(setting)
        if "task" in seen:
            ran = seen[(seen["kind"] == "lm_eval") & seen["task"].isin(list(PUBLISHED))]
            titles = {key: PUBLISHED[key].title for key in dict.fromkeys(ran["task"])}
            if titles:
                own = tuple(Task(key, title, title) for key, title in titles.items())
                return cls(study, setting, ran, own, True)
        records = scored(study, setting)
        records = records[records["subset"] == "general"]
        found = []
        for key in dict.fromkeys(records["task"]):
            name = embedded.TASKS[key].stands_for
            found.append(Task(key, f"{name}: {key}" if name else key, name))
        return cls(study, setting, records, tuple(found), False)

    @property
    def place(self) -> dict[str, str]:
        """The model and the dataset that the setting's numbers are reported for."""
        return self.study.document["settings"][self.setting]["reported"]

    @property
    def lines(self) -> Iterator[Line]:
        """General ability is scored at the end alone: ELDER's checkpoints have none."""
        usual = self.study.edits(self.setting, OWN)
        found = lines(self.study, self.setting)
        return (line for line in found if line.editor != OWN or line.edits == usual)

    def cell(
        self, line: Line, chosen: Sequence[Task], item: str, metric: str, told: float | None
    ) -> tables.Cell:
        """A line's mean over some tasks, each counting the same."""
        keys = [task.key for task in chosen]
        rows = self._rows(line)
        rows = rows[rows["task"].isin(keys)]
        if self.own:
            return self._of_harness(rows, line, item, metric, told)
        if len(keys) == 1:
            return self._measured(rows, "right_answers", line, item, metric, told)
        per_task = rows.groupby("task")["right_answers"].transform("count")
        weighed = rows["right_answers"] * len(rows) / (len(keys) * per_task)
        return self._measured(rows.assign(weighed=weighed), "weighed", line, item, metric, told)

    def unchanged(self, line: Line, item: str) -> tables.Cell:
        """How many of a line's answers are the unedited model's."""
        rows = self._rows(line)
        return self._measured(rows, "same_answers", line, item, "same answer as before", None)

    def _rows(self, line: Line) -> pd.DataFrame:
        if not self.own:
            return line.of(self.rows)
        if line.editor == UNEDITED_MODEL:  # the same in every run
            return self.rows[self.rows["moment"] == "before"].drop_duplicates(["task", "seed"])
        at_end = self.rows["moment"] == "end"
        return self.rows[at_end & (self.rows["editor"] == line.editor)]

    def _measured(
        self, rows: pd.DataFrame, column: str, line: Line, item: str, metric: str,
        told: float | None,
    ) -> tables.Cell:  # fmt: skip
        return tables.measure(
            rows, column, item=item, metric=metric, editor=line.label, setting=self.setting,
            moment=None, shown_setting=self.study.title(self.setting), reported=told,
            percent=True, error=line.why(self.study, self.setting),
        )  # fmt: skip

    def _of_harness(
        self, rows: pd.DataFrame, line: Line, item: str, metric: str, told: float | None
    ) -> tables.Cell:
        shown: dict[str, Any] = {
            "item": item, "setting": self.study.title(self.setting), "backbone": "",
            "dataset": "", "editor": line.label, "metric": metric, "reported": told,
        }  # fmt: skip
        if rows.empty:
            return tables.Cell(**shown, error=line.why(self.study, self.setting) or "not run")
        by_task = rows.groupby("task")
        value = 100 * by_task["value"].mean().mean()
        errors = by_task["stderr"].mean().astype(float)
        error = 100 * math.sqrt(float((errors**2).sum(skipna=False))) / len(errors)
        return tables.Cell(
            **shown, reproduced=value, ci_low=value - Z * error, ci_high=value + Z * error,
            n=int(by_task["n"].max().sum()), seeds=rows["seed"].nunique(),
        )  # fmt: skip

    def harness(self) -> str:
        """Whose wording and scorer the levels are those of."""
        first = self.rows.drop_duplicates("task").set_index("task")
        scored = [
            f"{task.title} {first.loc[task.key, 'metric']} (version "
            f"{first.loc[task.key, 'task_version']}, {first.loc[task.key, 'shots']:.0f} examples)"
            for task in self.tasks
        ]
        return (
            f"Wording and scorer are lm-eval's ({first['harness'].iloc[0]}), so levels are not the "
            f"paper's: {', '.join(scored)}."
        )


@tables.regenerated("tasks")
def tasks_table(study: Study, setting: str) -> tables.Table | None:
    """Tables 7 to 10: every task of one setting; None where no task was run."""
    layout, known = study.document["tables"]["tasks"], common.reported("elder")
    scores, cells = Ability.of(study, setting), []
    item, dataset = layout["items"][scores.place["model"]], scores.place["dataset"]
    if not scores.tasks:
        return None
    for line in scores.lines:
        for task in (*scores.tasks, None):
            name = "Avg." if task is None else task.reported
            told = reported_value(
                known, item=item[dataset], dataset=f"{dataset} -> {name}", method=line.reported
            )
            chosen, title = (scores.tasks, MEAN) if task is None else ([task], task.title)
            cells.append(scores.cell(line, chosen, item[dataset], title, told))
    return tables.build_table(
        cells,
        caption=f"{item[dataset]}, percent, after the last edit: {study.title(setting)}.",
        digits=1,
        notes=[*_about(scores), *_noted(layout, item[dataset])],
        csv_path=study.folder / "tables" / f"elder-tasks-{setting}.csv",
    )


@tables.regenerated("retention")
def retention_table(study: Study) -> tables.Table | None:
    """Table 2: the mean over tasks in every setting, and how many answers stayed as they were."""
    layout, known = study.document["tables"]["retention"], common.reported("elder")
    item, metric = layout["item"], layout["metric"]
    cells: list[tables.Cell] = []
    fewer: dict[str, None] = {}
    for scores in (Ability.of(study, setting) for setting in study.settings):
        for named in scores.lines if scores.tasks else ():
            # One line for an editor, however many edits it made in a setting; a note says so.
            line = replace(named, label=named.editor)
            if named.label != named.editor:
                fewer[f"{named.label} ({study.title(scores.setting)})."] = None
            told = reported_value(
                known, item=item, **scores.place, method=line.reported, metric=metric
            )
            cells.append(scores.cell(line, scores.tasks, item, MEAN, told))
            if not scores.own:
                cells.append(scores.unchanged(line, item))
    if not cells:
        return None
    return tables.build_table(
        [*cells, *_overall(study, cells, layout, known)],
        caption=f"{item}, percent: test retention after the last edit. Reported: eight tasks.",
        digits=1,
        notes=[*_noted(layout, item), *fewer],
        csv_path=study.folder / "tables" / "elder-retention.csv",
    )


def _overall(
    study: Study, cells: Sequence[tables.Cell], layout: Mapping[str, Any], known: pd.DataFrame
) -> Iterator[tables.Cell]:
    """The last column of Table 2, for editors that ran on both of the paper's models and both
    datasets: the mean of the four means."""
    both = {"model": "mean of both", "dataset": "mean of both"}
    for label in dict.fromkeys(cell.editor for cell in cells):
        mine = [c for c in cells if c.editor == label and c.metric == MEAN and c.n]
        if len(mine) == layout["means"]:
            method = told_as(label)
            told = reported_value(known, item=layout["item"], **both, method=method)
            yield tables.Cell(
                item=layout["item"], setting="all settings", backbone="", dataset="", editor=label,
                metric=MEAN, reported=told, n=sum(cell.n for cell in mine),
                reproduced=sum(cell.reproduced for cell in mine) / len(mine),
            )  # fmt: skip


def _about(scores: Ability) -> Iterator[str]:
    """How the harness scores; or what each stand-in asks and scores by chance; and which of the
    paper's tasks are missing."""
    if scores.own:
        yield scores.harness()
    for task in () if scores.own else scores.tasks:
        about = embedded.TASKS[task.key]
        yield f"{task.title}: {about.what}; by chance {100 * about.chance:.0f}."
    named = {task.reported for task in scores.tasks}
    left = [task.title for task in PUBLISHED.values() if task.title not in named]
    if left:
        yield f"Without a counterpart here: {', '.join(left)}."


def _noted(layout: Mapping[str, Any], item: str) -> list[str]:
    return [note["text"] for note in layout["notes"] if item in note.get("items", [item])]
