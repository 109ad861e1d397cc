"""What every paper's report says in the same way: reported numbers, examples, substitutions, failed
runs, the summary for the front page."""

import importlib.resources
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from lib.papers.own_findings import findings
from lib.report import summaries
from lib.report.claims import claims
from lib.report.reported import load_reported
from lib.report.tables import Cell
from lib.runs.plan import edits_of
from lib.runs.study import Study

__all__ = ["examples", "findings", "kept", "reason", "reported", "substitutions", "summary"]


LONGEST = 240  # characters of an example


def reported(paper: str) -> pd.DataFrame:
    """The reported numbers of a paper, each with its source."""
    with importlib.resources.as_file(
        importlib.resources.files("lib.papers").joinpath(f"{paper}_reported.csv")
    ) as path:
        return load_reported(path)


def examples(study: Study, setting: str, each: int = 3) -> pd.DataFrame:
    """A few rows of every subset before any edit: what is asked and what the backbone answers."""
    records = study.records(setting)
    if records.empty:
        return pd.DataFrame()
    first = records[records["run"] == records["run"].iloc[0]]
    shown = first[first["moment"] == "before"].sort_values("subset", kind="stable", key=_order)
    shown = shown.groupby("subset", sort=False).head(each)
    names = {
        "subset": "subset", "prompt": "prompt", "subject": "subject", "target": "answer to score",
        "other": "competing answer", "prediction": "decoded before the edits",
    }  # fmt: skip
    for text in ("prompt", "target"):
        shown[text] = shown[text].map(_shortened)
    shown = shown[[name for name in names if name in shown]].rename(columns=names)
    return shown.fillna("–").replace("", "–")


def _shortened(text: str) -> str:
    """A long text's beginning, whole words."""
    return textwrap.shorten(text, LONGEST, placeholder=" …") if len(text) > LONGEST else text


def _order(subsets: pd.Series) -> pd.Series:
    return subsets.map(
        {"edits": 0, "holdout": 1, "near": 2, "upstream": 3, "portability": 4, "general": 5}
    )


def kept(study: Study, name: str, frame: pd.DataFrame) -> pd.DataFrame:
    """The frame, also written as CSV beside the tables."""
    path = study.folder / "tables" / f"{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(path, index=False)
    return frame


def substitutions(study: Study, setting: str) -> list[str]:
    """What differs from the paper in a setting: backbone, data, precision, size."""
    found: list[str] = []
    for manifest in study.manifests(setting).values():
        counts = manifest["dataset"]["counts"]
        found += [
            text
            for text in (manifest["backbone"]["substitution"], manifest["dataset"]["substitution"])
            if text
        ]
        used = manifest["backbone"]["dtype"].removeprefix("torch.")
        published = study.original["settings"][setting].get("dtype", "float32")
        if used != published:
            found.append(f"Computed in {used} instead of {published}.")
        if "asked" in manifest["backbone"]:
            asked, why = manifest["backbone"]["asked"], manifest["backbone"]["why"]
            found.append(f"Computed in {used}, not in {asked} as this profile asks: {why}.")
        stream, paper = manifest["spec"]["stream"], study.original["settings"][setting]["stream"]
        sizes = [(edits_of(s), s["batch_size"]) for s in (stream, paper)]
        if sizes[0] != sizes[1]:
            found.append(
                f"{sizes[0][0]} edits of {counts['facts']} facts in batches of {sizes[0][1]} "
                f"instead of {sizes[1][0]:,} in batches of {sizes[1][1]}."
            )
    return list(dict.fromkeys(found))


def reason(study: Study, setting: str, editor: str, entry: Mapping[str, str]) -> str:
    """Why an editor has no number in a setting: the table's `not_run`, or its run's error."""
    if "not_run" in entry:
        return entry["not_run"]
    for title, error in study.errors().items():
        if title.startswith(f"{editor} on {setting},"):
            return error
    return ""


def summary(
    study: Study,
    verdicts: Mapping[str, claims.Judgement],
    listed: Mapping[str, list[str]],
    headline: Iterable[Cell],
    *,
    order: int,
    titles: Mapping[str, str] | None = None,
) -> summaries.PaperSummary:
    """What the front page says about a report, our own findings included.

    `verdicts`: the claims as every setting judges them. `headline`: table cells worth a place
    there. `titles`: how keys of `verdicts` that are no settings are called.
    """
    errors = [f"{title}: {text.strip().splitlines()[-1]}" for title, text in study.errors().items()]
    named = {name: setting["title"] for name, setting in study.document["settings"].items()}
    named |= titles or {}
    manifests = list(study.manifests(sweep=None).values())
    return summaries.PaperSummary(
        key=study.paper,
        title=study.document["title"],
        venue=study.document["venue"],
        summary=study.document["summary"],
        status="partial" if errors else "done",
        report=f"{study.paper}.html",
        headline=tuple(
            summaries.Headline.of(cell, label=f"{cell.editor}: {cell.metric}") for cell in headline
        ),
        claims=_told(verdicts, named),
        findings=_told(findings(study).by_setting, named),
        substitutions=tuple(dict.fromkeys(text for texts in listed.values() for text in texts)),
        runtime_seconds=sum(sum(manifest["seconds"].values()) for manifest in manifests),
        errors=tuple(errors),
        profile=study.profile,
        order=order,
        short=study.document["short"],
        made=_made(manifests),
    )


def _told(
    verdicts: Mapping[str, claims.Judgement], titles: Mapping[str, str]
) -> tuple[summaries.Told, ...]:
    return tuple(
        summaries.Told(
            claim.key, claim.sentence, claim.source, titles[place], found.verdict, found.evidence,
            editor=claim.editor, section=claim.shown,
        )
        for place, judged in verdicts.items()
        for claim, found in judged.rows
    )  # fmt: skip


def _made(manifests: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Machines, commits, days and versions of the runs, each once and in order."""
    found: dict[str, set[str]] = {"machines": set(), "commits": set(), "dates": set()}
    versions: set[str] = set()
    for manifest in manifests:
        found["machines"].add(manifest["device"])
        found["commits"].add(manifest["git_commit"])
        found["dates"].add(manifest.get("date", ""))
        versions |= {f"{name} {version}" for name, version in manifest["versions"].items()}
    return {name: sorted(found[name] - {""}) for name in found} | {"versions": sorted(versions)}
