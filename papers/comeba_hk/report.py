"""COMEBA-HK's report (published as CoachHooK): tables, claims and notes from a `Study`'s runs."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
from IPython.display import display

from lib.metrics import costs
from lib.report import page, summaries, tables
from lib.report.claims import claims, verdict
from lib.report.figures import curves, style
from lib.report.tables import UNEDITED_MODEL
from lib.runs.study import Study
from papers import common
from papers.comeba_hk import figures
from papers.comeba_hk.scores import (
    MOMENTS,
    OWN,
    PROTOCOLS,
    Form,
    editors_of,
    forms,
    place,
    scored,
    with_near,
)
from papers.common import substitutions

BOTH_NAMES = "COMEBA-HK is CoachHooK in the published version."


def _cells(
    study: Study, setting: str, columns: Sequence[Mapping[str, str]], item: str,
    elsewhere: Iterable[str] = (),
) -> Iterator[tables.Cell]:  # fmt: skip
    """One cell per editor and column; `elsewhere`: editors that only run on other pages."""
    _, protocol = place(study, setting)
    records, swaps = scored(study, setting), substitutions(study, setting)
    usual, elsewhere = study.edits(setting), dict.fromkeys(elsewhere, tables.NOT_RUN)
    shown = {UNEDITED_MODEL: "", **editors_of(study, setting), **elsewhere}
    for editor, absent in shown.items():
        ran = not absent and editor != UNEDITED_MODEL
        edits = study.edits(setting, editor) if ran else usual
        for column in columns:
            yield tables.measure(
                records,
                column["column"],
                item=item,
                metric=column["metric"],
                editor=editor,
                setting=setting,
                subset=column["subset"],
                moment=MOMENTS[protocol],
                shown_as=editor if edits == usual else f"{editor}, {edits:,} edits",
                shown_setting=study.title(setting),
                substitutions=swaps,
                error=absent or study.reason(setting, editor),
            )


@tables.regenerated("main")
def main_table(study: Study, setting: str) -> tables.Table:
    """Reliability, generality, locality and average in one setting (E1 or E2)."""
    layout = study.document["tables"]["main"]
    form, protocol = place(study, setting)
    item = layout["items"][protocol]
    return tables.build_table(
        _cells(study, setting, layout["columns"], item, layout["not_run"]),
        caption=f"{item}, {PROTOCOLS[protocol]}: {form.title}.",
        notes=[BOTH_NAMES, *(f"{name}: {why}." for name, why in layout["not_run"].items())],
        unreported=layout["unreported"],
        csv_path=study.folder / "tables" / f"comeba_hk-main-{setting}.csv",
    )


@tables.regenerated("counterfact", settings=with_near)
def counterfact_table(study: Study, setting: str) -> tables.Table:
    """CounterFact's scores in one setting: the asked answer likelier than its competitor."""
    layout = study.document["tables"]["counterfact"]
    return tables.build_table(
        _cells(study, setting, layout["columns"], layout["item"]),
        caption=f"CounterFact's scores, {PROTOCOLS[place(study, setting)[1]]}.",
        notes=[BOTH_NAMES],
        unreported=layout["unreported"],
        csv_path=study.folder / "tables" / f"comeba_hk-counterfact-{setting}.csv",
    )


@tables.regenerated("decoded")
def decoded_table(study: Study, setting: str) -> tables.Table:
    """What the edited models really answer, beside teacher-forced scores, in one setting."""
    layout = study.document["tables"]["decoded"]
    return tables.build_table(
        _cells(study, setting, layout["columns"], layout["item"]),
        caption=f"Decoded answers beside teacher-forced scores: {study.title(setting)}.",
        notes=[BOTH_NAMES],
        csv_path=study.folder / "tables" / f"comeba_hk-decoded-{setting}.csv",
    )


def judged(study: Study, form: Form, editor: str = OWN) -> claims.Judgement:
    """The abstract's sentences tested on one form of the data."""
    found = []
    for given in study.document["claims"]:
        spec: dict[str, Any] = {**given, "editor": editor}
        setting = form.setting(spec.pop("protocol"))
        if form.key in spec.pop("forms", [form.key]) and setting:
            found.append(claims.Claim.from_spec(spec | {"setting": setting}))
    names = [form.setting(protocol) for protocol in PROTOCOLS if form.setting(protocol)]
    frames, timed = [], []
    for name in names:
        swept = study.sweeps(name)
        frames += [scored(study, name, sweep) for sweep in ("", *swept)]
        timed.append(costs.inference(study.records(name), study.manifests(name)))
    material = verdict.Material(
        _joined(frames), _joined([study.steps(name) for name in names]), _joined(timed)
    )
    return claims.judge(found, material)


def _joined(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    filled = [frame for frame in frames if len(frame)]
    return pd.concat(filled, ignore_index=True) if filled else frames[0]


def sweep_plot(
    records: pd.DataFrame, axis: str, moment: str, layout: Mapping[str, Any]
) -> style.Plot:
    """Scores against a swept value. `layout`: `log` (axis), `efficacy` (CounterFact's scores in
    place of reliability and generality)."""
    rows = records.assign(swept=records["value"].astype(float))
    subsets = ("edits", "holdout", "locality", "average")
    titles = figures.TITLES
    if layout.get("efficacy"):
        named = {"edits": "efficacy", "holdout": "paraphrase"}
        asked = rows[rows["subset"].isin(named)]
        asked = asked.assign(subset=asked["subset"].map(named), score=asked["prefers_target"])
        rows = pd.concat([asked, rows], ignore_index=True)
        subsets = ("efficacy", "paraphrase", "locality", "average")
        titles = {**titles, "efficacy": "Efficacy", "paraphrase": "Paraphrase"}
    return curves.sweep(
        rows, "swept", "score", subsets=subsets, moment=moment, xlabel=axis, ylabel="score",
        titles=titles, log_x=layout.get("log", False),
    )  # fmt: skip


def draw_sweeps(study: Study, names: Sequence[str]) -> None:
    """Headed figures of the named sweeps in every setting that has them; those that no finished
    run varies share a line."""
    left = []
    for name in names:
        layout = study.document["tables"]["sweeps"][name]
        found = {
            setting: records
            for setting in study.settings
            if name in study.sweeps(setting) and len(records := scored(study, setting, name))
        }
        if not found:
            left.append(layout["heading"])
            continue
        display(page.heading(layout["heading"]))
        for setting, records in found.items():
            axis = study.sweeps(setting)[name]["title"]
            plot = sweep_plot(records, axis, MOMENTS[place(study, setting)[1]], layout)
            page.draw(study, setting, name, plot, f"Scores by {axis}")
    if left:
        display(page.paragraph(f"Not varied in this profile: {', '.join(left)}."))


def summary(
    study: Study, verdicts: Mapping[str, claims.Judgement], listed: Mapping[str, list[str]]
) -> summaries.PaperSummary:
    """What the front page says: the claims; of reported scores none could be seen."""
    titles = {form.key: form.title for form in forms(study)}
    return common.summary(study, verdicts, listed, titles=titles)
