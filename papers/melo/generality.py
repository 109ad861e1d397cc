"""Generality twice: as the released code measured it, and on rephrasings that no edit used."""

import pandas as pd

from lib.metrics.estimates import by_fact
from lib.report.claims.verdict import chance, paired
from lib.report.reported import reported_value
from lib.report.tables import regenerated
from lib.runs.study import Study
from papers.common import kept, reported
from papers.melo.scores import group_of, scored

METRIC, RELEASED, INTENDED = "f1_released", "released_holdout", "holdout"


def questions(study: Study) -> list[str]:
    """The settings of the zsRE group."""
    return [name for name in study.settings if group_of(study, name) == "zsre"]


@regenerated("generality", settings=questions)
def generality(study: Study, setting: str) -> pd.DataFrame:
    """One row per editor: reported generality, F1 on the edited prompts ("as released") and on
    held-out rephrases, and the difference of the two with its interval over facts."""
    end = scored(study, setting)
    end = end[end["moment"] == "end"]
    place, known = study.document["settings"][setting]["reported"], reported("melo")
    rows = study.document["tables"]["table2"]["rows"]
    found = []
    for editor in study.editors(setting):
        mine = end[end["editor"] == editor]
        released, held = (mine[mine["subset"] == name] for name in (RELEASED, INTENDED))
        if released.empty or held.empty:
            continue
        method, told = rows.get(editor, {}).get("reported_as"), None
        if place and method:
            told = reported_value(
                known, item="Table 2", **place, method=method, metric="Generality (F1)"
            )
        # Edited and held-out wordings are different prompts: compared fact by fact.
        gap = paired(by_fact(held), by_fact(released), METRIC)
        found.append(
            {
                "editor": editor, "reported": told, "as released": released[METRIC].mean(),
                "held out": held[METRIC].mean(), "held out - as released": gap.mean,
                "low": gap.low, "high": gap.high, "p": gap.p, "facts": gap.facts,
            }
        )  # fmt: skip
    return kept(study, f"melo-generality-{setting}", pd.DataFrame(found))


def shown(frame: pd.DataFrame) -> pd.DataFrame:
    """`generality` for readers: two digits, the interval in brackets."""
    if frame.empty:
        return frame
    number = lambda x: "–" if pd.isna(x) else f"{x:.2f}"  # noqa: E731
    interval = [
        f"{m:+.2f} [{low:+.2f}, {high:+.2f}]".replace("-", "−")
        for m, low, high in zip(
            frame["held out - as released"], frame["low"], frame["high"], strict=True
        )
    ]
    columns = {name: frame[name].map(number) for name in ("reported", "as released", "held out")}
    return pd.DataFrame(
        {"editor": frame["editor"], **columns, "held out − as released": interval,
         "facts": frame["facts"]}
    )  # fmt: skip


def conclusion(study: Study) -> str:
    """One paragraph: what the two readings do to the paper's conclusion on generality."""
    told = [_sentences(study, name) for name in study.settings if group_of(study, name) == "zsre"]
    return " ".join(filter(None, told)) or "No run of this profile scored both readings."


def _sentences(study: Study, setting: str) -> str:
    frame = generality(study, setting)
    if frame.empty or "MELO" not in set(frame["editor"]):
        return ""
    frame = frame.set_index("editor")
    own, best = frame.loc["MELO"], {n: frame[n].idxmax() for n in ("as released", "held out")}
    place = {n: int(frame[n].rank(ascending=False, method="min")["MELO"]) for n in best}
    count, title = len(frame), study.title(setting)
    text = (
        f"{title}: scored on the edited prompts, MELO has a generality of {own['as released']:.2f} "
        f"(place {place['as released']} of {count}; best {best['as released']}); on rephrasings "
        f"that no edit used {own['held out']:.2f} (place {place['held out']}; best "
        f"{best['held out']} with {frame.loc[best['held out'], 'held out']:.2f}; difference "
        f"{own['held out - as released']:+.2f}, {chance(own['p'])}, {int(own['facts'])} facts)."
    )
    if pd.notna(own["reported"]):
        text += (
            f" The paper's {own['reported']:.2f} can only be set beside the first number: it "
            "measures how well edits are kept, not how far they carry."
        )
    if "MELO intended" in frame.index:
        other = frame.loc["MELO intended"]
        text += f" With the intended key the held-out number is {other['held out']:.2f}."
    return text.replace("-0.", "−0.")
