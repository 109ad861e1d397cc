"""Several editors on one's own facts: the side-by-side protocol, table and figure.

Every editor edits the same facts in the same order and batches of the same model, alone, and is
scored after the last one. Means and 95 % intervals are over prompts; all prompts of a fact are one
unit (`lib.metrics.intervals`). A decoded answer is right if it begins with the target.
"""

import base64
import html
import io
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from lib.api.choices import choose
from lib.api.editing import BATCH
from lib.api.facts import checked_facts
from lib.api.models import Model, load
from lib.api.scores import protocol_for
from lib.api.supplies import Lessons, Text, announce, stream_of, supplies
from lib.backbones.backbone import Backbone
from lib.backbones.passes.kept import Kept
from lib.data.records import Edit, Stream
from lib.editors import build
from lib.editors.base import Editor
from lib.errors import EditorError, StudyError
from lib.evaluation.evaluator import Evaluator, ScoredRow
from lib.evaluation.protocol import run_sequence
from lib.evaluation.scoring import Scored, needs_whole_passes
from lib.metrics import ranking
from lib.report import tables
from lib.report.figures import files
from lib.report.figures.parts import means
from lib.report.figures.rows import amounts, row_panels
from lib.report.figures.style import Plot, looks, say, use_style
from lib.runs.progress import clock

UNEDITED_MODEL = "Unedited model"
ITEM, DATASET = "comparison", "own facts"
# Group, title, subset and column of the table's measures; the first three that are decoded are the
# parts of the editing score, their harmonic mean.
MEASURES = (
    ("Reliability", "teacher-forced", "edits", "forced"),
    ("Reliability", "decoded", "edits", "right"),
    ("Generality", "teacher-forced", "holdout", "forced"),
    ("Generality", "decoded", "holdout", "right"),
    ("Locality", "unchanged", "near", "unchanged"),
    ("Portability", "decoded", "portability", "right"),
)
PARTS = (MEASURES[1], MEASURES[3], MEASURES[4])


@dataclass(frozen=True, repr=False)
class Comparison:
    """What a comparison found. `records`: a row for each scored prompt, editor and moment ("before"
    any edit, after its "own" batch, at the "end"); `seconds` per edit by editor; `errors`: why an
    editor has no scores; `origins`: where its settings come from."""

    model: str
    n_edits: int
    editors: tuple[str, ...]
    records: pd.DataFrame
    seconds: dict[str, list[float]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)

    @property
    def table(self) -> tables.Table:
        """The table of the side-by-side page; a notebook shows it, `table.tidy` is its frame."""
        rows = _last(self.records)
        rows = rows.assign(unit=rows["edit_index"])
        shown = {"item": ITEM, "backbone": self.model, "dataset": DATASET}
        cells = []
        for name in (UNEDITED_MODEL, *self.editors):
            error = self.errors.get(name, "")
            cells += self._score(rows, name, shown, error)
            for group, title, subset, column in MEASURES:
                part = rows[(rows["subset"] == subset) & rows[column].notna()]
                if len(part):
                    cells.append(
                        tables.measure(
                            part, column, item=ITEM, metric=title, editor=name, moment=None,
                            shown_setting=group, error=error,
                        )
                    )  # fmt: skip
            if name != UNEDITED_MODEL:
                spent = self.seconds.get(name, [])
                cells.append(
                    tables.Cell(
                        **shown, editor=name, setting="Seconds", metric="per edit",
                        n_edits=self.n_edits, n=len(spent), error=error,
                        reproduced=float(np.mean(spent)) if spent else float("nan"),
                    )
                )  # fmt: skip
        return tables.build_table(
            cells,
            caption=f"After {self.n_edits:,} edits of {self.model}.",
            notes=[
                "Decoded: what the model writes begins with the answer. Teacher-forced: every "
                "token of the answer is the first choice when the answer is fed in. Unchanged: it "
                "writes what the unedited model wrote.",
                *(f"{name}: {origin}" for name, origin in self.origins.items()),
            ],
            own=True,
        )

    def _score(
        self, rows: pd.DataFrame, name: str, shown: Mapping[str, str], error: str
    ) -> list[tables.Cell]:
        """The editing score with the interval of the ranking; nothing where a part was not asked
        for of any editor."""
        if not all((rows["subset"] == subset).any() for _, _, subset, _ in PARTS):
            return []
        labels = {"editor": name, "setting": "Editing score", "metric": "of three"}
        mine = rows[rows["editor"] == name]
        if mine.empty:
            return [tables.Cell(**shown, **labels, error=error or "not scored")]
        found = ranking.standings(_sample(mine, name))
        if not found:
            return [tables.Cell(**shown, **labels, error="no fact has all three parts")]
        return [
            tables.Cell(
                **shown, **labels, n_edits=self.n_edits, reproduced=found[0].score,
                ci_low=found[0].low, ci_high=found[0].high, n=mine["unit"].nunique(), seeds=1,
            )
        ]  # fmt: skip

    @property
    def plot(self) -> Plot:
        """Every decoded measure and the seconds per edit, an editor a row."""
        rows, names = _last(self.records), list(self.editors)
        style, data = looks([UNEDITED_MODEL, *names]), []
        shown = [one for one in MEASURES if one[1] != "teacher-forced"]
        shown = [one for one in shown if (rows["subset"] == one[2]).any()]
        with use_style():
            titles = [*(f"{group}, {title}" for group, title, *_ in shown), "Seconds per edit"]
            figure, axes = row_panels(titles, [UNEDITED_MODEL, *names])
            for panel, (group, _, subset, column) in zip(axes, shown, strict=False):
                part = rows[(rows["subset"] == subset) & rows[column].notna()]
                found = means(part.assign(seed=0), column, ["editor"])
                amounts(panel, found, "editor", [UNEDITED_MODEL, *names], style)
                panel.set_xlim(0, 1.3)
                panel.set_xticks([0, 0.25, 0.5, 0.75, 1])
                data.append(found.assign(measure=group))
            spent = pd.DataFrame(
                [(name, value) for name, values in self.seconds.items() for value in values],
                columns=["editor", "seconds"],
            )
            if spent.empty:
                say(axes[len(shown)], "No editor was timed.")
            else:
                found = (
                    spent.groupby("editor", sort=False)["seconds"].mean().reset_index(name="mean")
                )
                found = found.assign(low=float("nan"), high=float("nan"))
                amounts(axes[len(shown)], found, "editor", [UNEDITED_MODEL, *names], style)
                data.append(found.assign(measure="Seconds per edit"))
        told = f"{self.n_edits} edits of {self.model}; lines: 95 % interval over facts."
        return Plot(figure, pd.concat(data, ignore_index=True) if data else pd.DataFrame(), told)

    def __repr__(self) -> str:
        return f"<{', '.join(self.editors)} on {self.model}: {self.n_edits} edits>"

    def save(self, folder: str | Path) -> Path:
        """Write table.csv, records.parquet and the figure (SVG, PNG, CSV) into a folder."""
        folder = Path(folder).expanduser()
        self.table.write_csv(folder / "table.csv")
        self.records.to_parquet(folder / "records.parquet")
        files.save(self.plot, folder, "figure", self._alt, page_folder=folder)
        return folder

    @property
    def _alt(self) -> str:
        return f"Scores and seconds per edit of {', '.join(self.editors)} on {self.model}"

    def _repr_html_(self) -> str:
        drawn = io.BytesIO()
        self.plot.figure.savefig(drawn, format="png", dpi=110)
        picture = base64.b64encode(drawn.getvalue()).decode("ascii")
        image = f'<img alt="{html.escape(self._alt)}" src="data:image/png;base64,{picture}">'
        return self.table.to_html() + image


def compare(
    model: Model,
    editors: Sequence[str] | Mapping[str, Mapping[str, object]],
    facts: Edit | Iterable[Edit],
    *,
    batch_size: int = BATCH,
    text: Text | None = None,
    lessons: Lessons | None = None,
) -> Comparison:
    """Edit the facts with one editor after the other and score each; the model is as it was then.

    `editors`: names, or names with settings (`{"GRACE": {"radius": 5.0}}`). What one editor cannot
    do (another kind of model, a fact without a subject) stands in its row and stops no other.
    """
    backbone, chosen = load(model), checked_facts(facts)
    asked = editors if isinstance(editors, Mapping) else {name: {} for name in editors}
    if not asked:
        raise EditorError("there is nothing to compare: name at least one editor")
    stream, kept = stream_of(chosen, batch_size), Kept()
    if backbone.family.kind == "classifier":
        raise EditorError(
            "comparisons are for models that write; edit a classifier with lib.edit and read its "
            "score()"
        )
    before: dict[object, dict[str, list[Scored]]] = {}
    records: list[pd.DataFrame] = []
    found = Comparison(backbone.name, len(chosen), tuple(asked), pd.DataFrame())
    for name, settings in asked.items():
        try:
            choice = choose(name, backbone, dict(settings))
            found.origins[name] = choice.origin
            given = supplies(choice.kind, backbone, stream, text, lessons)
            editor = build(choice.kind, backbone, choice.config, **given, kept=kept)
            try:
                announce(editor, choice.kind, batch_size)
                rows, found.seconds[name] = _run(editor, stream, backbone, kept, before)
            finally:
                editor.close()
        except StudyError as error:
            found.errors[name] = str(error)
            print(f"{name}: {error}", file=sys.stderr)
            continue
        spent = sum(found.seconds[name]) / len(found.seconds[name])
        print(f"{name}: {len(chosen)} edits, {clock(spent * len(chosen))}", file=sys.stderr)
        records.append(pd.DataFrame(rows).assign(editor=name))
    if not records:
        raise EditorError("no editor could edit these facts: " + "; ".join(found.errors.values()))
    return Comparison(
        found.model, found.n_edits, found.editors, _scored(records, backbone), found.seconds,
        found.errors, found.origins,
    )  # fmt: skip


def _run(
    editor: Editor,
    stream: Stream,
    backbone: Backbone,
    kept: Kept,
    before: dict[object, dict[str, list[Scored]]],
) -> tuple[list[ScoredRow], list[float]]:
    """Scored rows of one editor, and seconds per edit of each batch. Scores before any edit are
    shared by editors whose answers are scored by the same passes."""
    protocol, config = protocol_for(backbone, stream), editor.config
    way = (needs_whole_passes(editor), config.max_length, config.full_width)
    evaluator = Evaluator(editor, stream, protocol, before=before.setdefault(way, {}), kept=kept)
    evaluator.score_unedited()
    rows: list[ScoredRow] = []
    steps: list[ScoredRow] = []
    run_sequence(
        editor, stream, protocol, evaluator,
        write_record=rows.append, write_step=steps.append, after_batch=lambda _: None,
    )  # fmt: skip
    sizes = np.diff([0, *(step["n_edits"] for step in steps)])
    return rows, [step["seconds_edit"] / size for step, size in zip(steps, sizes, strict=True)]


def _scored(parts: Sequence[pd.DataFrame], backbone: Backbone) -> pd.DataFrame:
    """All rows with `right` (decoded), `forced` and `unchanged`, and with what tables ask for."""
    rows = pd.concat(parts, ignore_index=True)
    told = rows["target"] != ""
    accuracy = rows["prompt_accuracy"].astype(float)
    return rows.assign(
        right=rows["begins_with"].astype(float).where(told),
        forced=(accuracy == 1).astype(float).where(accuracy.notna() & told),
        unchanged=rows["agreement"].astype(float),
        backbone=backbone.name,
        dataset=DATASET,
        seed=0,
    )


def _last(records: pd.DataFrame) -> pd.DataFrame:
    """The rows after the last edit, and those of the unedited model, once."""
    before = records[records["moment"] == "before"]
    before = before[before["editor"] == before["editor"].iloc[0]]
    end = records[records["moment"] == "end"]
    return pd.concat([before.assign(editor=UNEDITED_MODEL), end], ignore_index=True)


def _sample(rows: pd.DataFrame, name: str) -> ranking.Sample:
    """The parts of the editing score of one editor, on the facts that have all of them."""
    units = sorted(rows["unit"].unique())
    sums, counts = (np.zeros((1, len(PARTS), 1, len(units))) for _ in range(2))
    for number, (_, _, subset, column) in enumerate(PARTS):
        part = rows[(rows["subset"] == subset) & rows[column].notna()]
        at = part["unit"].map({unit: place for place, unit in enumerate(units)}).to_numpy(int)
        np.add.at(sums[0, number, 0], at, part[column].to_numpy(float))
        np.add.at(counts[0, number, 0], at, 1.0)
    common = (counts > 0).all(axis=(0, 1, 2))
    named = tuple(str(unit) for unit, keep in zip(units, common, strict=True) if keep)
    return ranking.Sample((name,), named, sums[..., common], counts[..., common])
