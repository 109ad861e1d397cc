"""COMEBA-HK's report (published as CoachHooK): tables, claims and notes from a `Study`'s runs."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
from IPython.display import display

from lib.metrics import costs
from lib.report import page, summaries, tables
from lib.report.claims import claims, verdict
from lib.report.figures import style
from lib.report.figures.parts import levels
from lib.report.figures.rows import against_default, differences, kept_edits, then_and_now
from lib.report.tables import UNEDITED_MODEL
from lib.runs.study import Study
from papers import common
from papers.comeba_hk.scores import (
    MOMENTS,
    OWN,
    PROTOCOLS,
    Form,
    editors_of,
    forms,
    place,
    scored,
    with_rivals,
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


@tables.regenerated("counterfact", settings=with_rivals)
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


def without_rivals(study: Study) -> str:
    """A paragraph that names the settings that CounterFact's scores cannot be read on."""
    named = [study.title(setting) for setting in with_rivals(study, scored=False)]
    told = f"Competing answers are not scored in this profile: {'; '.join(named)}."
    return page.paragraphs([told] if named else [])


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


def retention(study: Study, setting: str) -> style.Plot:
    """How an edit stands right after its batch and after the last one, an editor a row."""
    records = scored(study, setting)
    about = f"{study.edits(setting):,} edits."
    return then_and_now(
        kept_edits(records, "score"), levels=levels(records, "score", "edits"), about=about
    )


SCORES = {"edits": "Reliability", "holdout": "Generality", "locality": "Locality",
          "average": "Average"}  # fmt: skip
EFFICACY = {"efficacy": "Efficacy", "paraphrase": "Paraphrase", "locality": "Locality",
            "average": "Average"}  # fmt: skip


def draw_sweeps(study: Study, names: Sequence[str]) -> None:
    """One figure per setting of what the values of the named sweeps change, and a sentence that
    names those that no finished run varies."""
    layouts, drawn = study.document["tables"]["sweeps"], set()
    for setting in study.settings:
        done = [name for name in names if name in study.sweeps(setting)]
        done = [name for name in done if len(scored(study, setting, name))]
        if done:
            text = "What another value changes: " + "; ".join(layouts[n]["heading"] for n in done)
            page.draw(study, setting, "-".join(done), sweep_plot(study, setting, done), text)
            drawn |= set(done)
    absent = [layouts[name]["heading"] for name in names if name not in drawn]
    if absent:
        text = f"Not varied by a finished run of this profile: {'; '.join(absent)}."
        display(page.paragraph(text))


def sweep_plot(study: Study, setting: str, names: Sequence[str]) -> style.Plot:
    """Each value of the named sweeps minus that of the main table, on the same prompts, by
    CounterFact's scores where the layouts say so (`efficacy`)."""
    layouts, main = study.document["tables"]["sweeps"], scored(study, setting)["run"].unique()
    titles = EFFICACY if all(layouts[name].get("efficacy") for name in names) else SCORES
    parts, usual = [], []
    for name in names:
        rows, called = scored(study, setting, name), study.sweeps(setting)[name]["title"]
        if titles is EFFICACY:
            named = {"edits": "efficacy", "holdout": "paraphrase"}
            asked = rows[rows["subset"].isin(named)]
            asked = asked.assign(subset=asked["subset"].map(named), score=asked["prefers_target"])
            rows = pd.concat([asked, rows], ignore_index=True)
        parts.append(against_default(
            rows, "score", titles, main,
            lambda _, value, called=called: f"{called} {float(value):g}",
            moment=MOMENTS[place(study, setting)[1]],
        ))  # fmt: skip
        default = sorted({float(value) for value in rows[rows["run"].isin(main)]["value"]})
        usual.append(f"{called} {', '.join(f'{v:g}' for v in default) or 'not among the values'}")
    about = f"Usual: {'; '.join(usual)}."
    rows = pd.concat(parts, ignore_index=True)
    return differences(rows, titles=titles, xlabel="minus the usual", about=about)


def summary(
    study: Study, verdicts: Mapping[str, claims.Judgement], listed: Mapping[str, list[str]]
) -> summaries.PaperSummary:
    """What the front page says: the claims; of reported scores none could be seen."""
    titles = {form.key: form.title for form in forms(study)}
    return common.summary(study, verdicts, listed, titles=titles)
