"""Pages of records: what an editor was asked, and what the model answered before and after.

One static page per run, beside the report whose tables lead here. A section per subset, a column
per moment with an anchor "<subset>-<edits>" ("-before", "-own"), a row per record.
"""

import html
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pandas as pd

from lib.data.records import TITLES
from lib.report.pages.notebook import ASSETS
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
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def write(path: Path, title: str, rows: pd.DataFrame, *, back: str) -> Path:
    """Write the page of one run's records; returns `path`. `back`: the report, relative to it.

    `rows` as `papers.side_by_side.scores` gives them. Of a long section at most `ROOM` rows
    are shown, evenly over the stream; the page says so.
    """
    sections = [_section(name, rows[rows["subset"] == name], back) for name in ABOUT]
    links = " · ".join(
        f'<a href="#{name}">{TITLES[name]}</a>'
        for name, section in zip(ABOUT, sections, strict=True)
        if section
    )
    css = (ASSETS / "report.css").read_text(encoding="utf-8") + STYLE
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f"<title>{_safe(title)}</title>\n<style>\n{css}</style>\n</head>\n<body>\n"
        '<a class="skip" href="#content">Skip to the records</a>\n'
        f'<header class="top"><nav aria-label="Study"><a href="{_safe(back)}">← Back to the '
        'tables</a></nav></header>\n<div class="page single"><main id="content">\n'
        f"<h1>{_safe(title)}</h1><p>{links or 'Nothing was scored.'}</p><p>The first mark of an "
        "answer is for the whole answer fed in token by token, the second for what the model wrote "
        "by itself, which follows: ✓ right, ✗ wrong; on the same relation and on unrelated "
        "questions = as before, ≠ changed. The colour goes by the second, or the first where "
        "nothing was decoded. Numbers in the heads are edits that the model held.</p>\n"
        f"{''.join(sections)}</main></div>\n</body>\n</html>\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page)
    return path


def _section(name: str, rows: pd.DataFrame, back: str) -> str:
    if rows.empty:
        return ""
    heading = TITLES[name]
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
    heads = "".join(
        f'<th scope="col" id="{name}-{place}">{_moment(place)}</th>' for place in moments
    )
    body = "".join(
        _row(row, name, answers) for row in shown[["edit_index", "record", "prompt", "target"]]
        .itertuples(index=False)
    )  # fmt: skip
    return (
        f'<h2 id="{name}">{heading}</h2><p>{ABOUT[name]}.{cut} '
        f'<a href="{_safe(back)}">Back to the tables</a></p>'
        f'<div class="scroll" role="region" tabindex="0" aria-label="{heading}"><table><thead><tr>'
        f'<th scope="col">Edit</th><th scope="col">Prompt</th><th scope="col">Answer</th>{heads}'
        f"</tr></thead><tbody>{body}</tbody></table></div>\n"
    )


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


def _row(row: tuple, name: str, answers: Mapping[str, Mapping[tuple[str, str], tuple]]) -> str:
    index, record, prompt, target = row
    number = "" if index < 0 else str(int(index) + 1)
    cells = [
        _answer(*found[record, prompt], name in KEPT, place == "before")
        if (record, prompt) in found
        else "<td>"
        for place, found in answers.items()
    ]
    text = _safe(_short(str(prompt), OF_GENERAL if name == "general" else LONGEST))
    asked = f"<td class=b>{text}" if name in BORROWED else f"<td>{text}"
    return f"<tr><td>{number}{asked}<td>{_safe(_short(str(target), 60))}{''.join(cells)}\n"


def _answer(forced: float, decoded: float, text: object, kept: bool, before: bool) -> str:
    """One answer: two marks, the decoded text, and a colour by the second mark."""
    told = _safe(_short(text, 60)) if isinstance(text, str) else ""
    if kept and before:
        return f"<td>{told}"
    style = _style(decoded if decoded == decoded else forced)
    return f"<td{style}>{_mark(forced, kept)}{_mark(decoded, kept)} {told}"


def _mark(score: float, kept: bool) -> str:
    if score != score:
        return "·"
    return ("=" if kept else "✓") if score == 1 else ("≠" if kept else "✗")


def _style(score: float) -> str:
    return "" if score != score else " class=r" if score == 1 else " class=w"


def _short(text: str, longest: int) -> str:
    """The text on one line; of a long one the beginning."""
    text = re.sub(r"\s+", " ", text).strip()
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _safe(text: object) -> str:
    return html.escape(str(text), quote=True)
