"""Pages of records: what an editor was asked, and what the model answered before and after.

One static page per run, beside the report whose tables lead here. A section per subset, a column
per moment with an anchor "<subset>-<edits>" ("-before", "-own"), a row per record.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pandas as pd
from markupsafe import Markup

from lib.data.records import TITLES
from lib.report import templates
from lib.storage.atomic import write_text

ABOUT = {  # in the order of the sections
    "edits": "The prompts that were edited",
    "holdout": "The same facts in other words, which no editor saw",
    "near": "Other subjects; the answer should stay as it was",
    "upstream": "The answer should stay as it was",
    "portability": "Questions whose answer follows from the edit",
    "general": "Small tasks; the right answer is shown",
}
KEPT = ("near", "upstream")  # judged by what stayed, not by what is right
BORROWED = ("upstream", "general")  # prompts of other projects: a published copy cuts them
LONGEST, OF_GENERAL, ROOM = 200, 80, 120  # characters of a prompt; rows of a section
STYLE = (
    "td.r{background:var(--good-back)}td.w{background:var(--bad-back)}"
    "th:target{outline:2px solid var(--link);outline-offset:-2px}"
    "main td{overflow-wrap:break-word;padding-left:.2rem}"
    "main td:nth-child(2){min-width:16rem;max-width:26rem}main td:nth-child(n+4){min-width:4.8rem}"
)


def write(path: Path, title: str, rows: pd.DataFrame, *, back: str) -> Path:
    """Write the page of one run's records; returns `path`. `back`: the report, relative to it.

    `rows` as `papers.side_by_side.scores` gives them. Of a long section at most `ROOM` rows
    are shown, evenly over the stream; the page says so.
    """
    page = templates.fill(
        "records",
        title=title,
        back=back,
        css=Markup(templates.text("report.css") + STYLE),
        script=Markup(templates.text("tables.js")),
        policy=Markup(templates.policy(pictures="")),
        sections=[_section(name, rows[rows["subset"] == name]) for name in ABOUT if
                  (rows["subset"] == name).any()],
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, f"{page}\n")
    return path


def _section(name: str, rows: pd.DataFrame) -> dict[str, object]:
    moments = dict(_moments(rows))
    records = rows.drop_duplicates(["record", "prompt"])
    records = records.sort_values(["edit_index", "record"], kind="stable")
    shown = _evenly(records)
    cut = (
        f" Shown are {len(shown)} of {len(records)} records, evenly over the stream."
        if len(shown) < len(records)
        else ""
    )
    columns = ["kept_forced", "kept"] if name in KEPT else ["right", "decoded"]
    answers = {
        place: {
            (record, prompt): tuple(answer)
            for record, prompt, *answer in part[
                ["record", "prompt", *columns, "prediction"]
            ].itertuples(index=False, name=None)
        }
        for place, part in moments.items()
    }
    asked = shown[["edit_index", "record", "prompt", "target"]].itertuples(index=False)
    return {
        "name": name, "heading": TITLES[name], "about": f"{ABOUT[name]}.{cut}",
        "moments": [(place, _moment(place)) for place in moments], "borrowed": name in BORROWED,
        "rows": [_row(row, name, answers) for row in asked],
    }  # fmt: skip


def _moments(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The rows of every moment: before, own, then after so many edits."""
    for moment in ("before", "own"):
        part = rows[rows["moment"] == moment]
        if len(part):
            yield moment, part
    later = rows[rows["moment"].isin(["checkpoint", "end"])]
    for edits, part in later.groupby("n_edits"):
        yield str(int(edits)), part


def _moment(place: str) -> str:
    return {"before": "Before", "own": "After its batch"}.get(place, f"After {place}")


def _evenly(records: pd.DataFrame) -> pd.DataFrame:
    if len(records) <= ROOM:
        return records
    return records.iloc[[i * len(records) // ROOM for i in range(ROOM)]]


def _row(
    row: tuple, name: str, answers: Mapping[str, Mapping[tuple[str, str], tuple]]
) -> dict[str, object]:
    index, record, prompt, target = row
    cells = [
        _answer(*found[record, prompt], name in KEPT, place == "before")
        if (record, prompt) in found
        else {"style": "", "text": ""}
        for place, found in answers.items()
    ]
    longest = OF_GENERAL if name == "general" else LONGEST
    return {
        "number": "" if index < 0 else str(int(index) + 1), "answers": cells,
        "prompt": _short(str(prompt), longest), "target": _short(str(target), 60),
    }  # fmt: skip


def _answer(
    forced: float, decoded: float, text: object, kept: bool, before: bool
) -> dict[str, str]:
    """One answer: two marks, the decoded text, and a colour by the second mark."""
    told = _short(text, 60) if isinstance(text, str) else ""
    if kept and before:
        return {"style": "", "text": told}
    style = _style(decoded if decoded == decoded else forced)
    return {"style": style, "text": f"{_mark(forced, kept)}{_mark(decoded, kept)} {told}"}


def _mark(score: float, kept: bool) -> str:
    if score != score:
        return "·"
    return ("=" if kept else "✓") if score == 1 else ("≠" if kept else "✗")


def _style(score: float) -> str:
    return "" if score != score else "r" if score == 1 else "w"


def _short(text: str, longest: int) -> str:
    """The text on one line; of a long one the beginning."""
    text = re.sub(r"\s+", " ", text).strip()
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
