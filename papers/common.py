"""What every paper's report says in the same way: reported numbers, one edit, examples,
substitutions, failed runs, the summary for the front page."""

import math
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pandas as pd
from IPython.display import HTML, display
from torch import Tensor, nn

from lib.api.editing import Edited, edit
from lib.data.records import Edit, Stream
from lib.editors import needs_of
from lib.errors import StudyError
from lib.metrics import costs
from lib.metrics.intervals import spread_over_seeds
from lib.report import page, summaries, tables
from lib.report.claims import claims, verdict
from lib.report.orderings import orderings
from lib.report.reported import load_reported
from lib.runs import machine
from lib.runs.plan import edits_of
from lib.runs.settings import FOLDER
from lib.runs.study import Study


def verdicts(
    study: Study,
    judged: Mapping[str, claims.Judgement],
    titles: Mapping[str, str] | None = None,
) -> claims.Verdicts:
    """The claims as every setting judges them, what longer profiles say beside them; `titles`: how
    keys of `judged` that are no settings are called."""
    named = {name: setting["title"] for name, setting in study.document["settings"].items()}
    others = summaries.beside(study.folder, study.profile, study.paper)
    return claims.Verdicts(judged, named | dict(titles or {}), others)


def judged(
    study: Study,
    judge: Callable[[Study, Any], claims.Judgement],
    places: Mapping[str, Any] | None = None,
) -> dict[str, claims.Judgement]:
    """The claims as `judge` finds them in every place (default: the settings), by its key, each
    also written as CSV (`<paper>-claims-<key>`)."""
    found = {}
    for key, place in (places or {name: name for name in study.settings}).items():
        found[key] = judge(study, place)
        kept(study, f"{study.paper}-claims-{key}", found[key].tidy)
    return found


def findings(study: Study) -> claims.Verdicts:
    """Every finding in every setting that plans its editors, also written as CSV.

    An entry of `findings:` is one of `claims:` (`Claim.from_spec`). Its `editor`, if it has one,
    and further editors (`needs`) must be planned; `settings` names the only ones that can tell.
    """
    planned = {
        name: setting
        for name, setting in study.document["settings"].items()
        if setting.get("enabled", True)
    }
    judged = {name: _judged(study, name) for name in planned}
    judged = {name: found for name, found in judged.items() if found.rows}
    found = verdicts(study, judged)
    kept(study, f"{study.paper}-findings", found.tidy)
    return found


def _judged(study: Study, setting: str) -> claims.Judgement:
    here = {name for name, entry in study.document["settings"][setting]["editors"].items() if entry}
    stated = []
    for given in study.document.get("findings", ()):
        spec = dict(given)
        needed = {*filter(None, [spec.get("editor")]), *spec.pop("needs", ())}
        if setting in spec.pop("settings", [setting]) and needed <= here:
            stated.append(claims.Claim.from_spec(spec))
    if not stated:
        return claims.Judgement(())
    records = study.records(setting, None)
    if records.empty:
        nothing = verdict.Verdict(verdict.NOT_TESTABLE, "No run of this setting is finished.")
        return claims.Judgement(tuple((finding, nothing) for finding in stated))
    material = verdict.Material(
        records,
        study.steps(setting, None),
        costs.inference(study.records(setting), study.manifests(setting)),
        study.observations(setting, None),
    )
    return claims.judge(stated, material)


LONGEST = 240  # characters of an example
ORDER = ("edits", "holdout", "near", "upstream", "portability", "general")


def reported(paper: str) -> pd.DataFrame:
    """The reported numbers of a paper, each with its source."""
    return load_reported(FOLDER / paper / "reported.csv")


def examples(study: Study, setting: str, each: int = 2) -> pd.DataFrame:
    """A few rows of every subset before any edit: what is asked and what the backbone answers."""
    records = study.records(setting)
    if records.empty:
        return pd.DataFrame()
    first = records[records["run"] == records["run"].iloc[0]]
    shown = first[first["moment"] == "before"].sort_values(
        "subset", kind="stable", key=lambda subsets: subsets.map(ORDER.index)
    )
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


def kept(study: Study, name: str, frame: pd.DataFrame) -> pd.DataFrame:
    """The frame, also written as CSV beside the tables, which its page links to."""
    path = study.folder / "tables" / f"{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(path, index=False)
    frame.attrs["csv"] = str(path)
    return frame


def one_edit(study: Study, setting: str, editor: str, **changes: Any) -> HTML:
    """The first fact of a setting, edited on its backbone by one of its editors: what the model
    writes before and after. `changes` are laid over the editor's settings. Where this cannot be
    done here, the reason.

    It is `lib.edit` with the study's own materials: what the editor learns or reads before its
    first edit is what its run has.
    """
    try:
        run = study.main_run(setting, editor)
        spec, config = run.spec, {**run.spec["config"], **changes}
        with machine.deterministic(run.seed, spec.get("threads")):
            given = study.resources.materials(spec, needs_of(spec["editor"]))
            fact = first_fact(given.stream)
            with edit(
                given.backbone, spec["editor"], fact, batch_size=given.stream.batch_size,
                text=given.corpus, lessons=given.learned, **config,
            ) as edited:  # fmt: skip
                scores = edited.score()
    except (StudyError, RuntimeError, OSError) as error:
        return page.paragraph(f"{editor} edits no fact here: {error}")
    asked = {"edit": "the edit", "rephrase": "in other words", "locality": "something else"}
    rows = [
        (asked[row.kind], *map(_shortened, (row.prompt, row.target or "–", row.before, row.after)))
        for row in scores.itertuples()
    ]
    heads = ("asked", "prompt", "right answer", "before the edit", "after it")
    caption = f"{editor} edits one fact in {given.backbone.name}, as on {study.title(setting)}"
    return HTML(page.html_table(heads, rows, caption))


def first_fact(stream: Stream) -> Edit:
    """The first edit of a stream that a rephrase is held out for, with that rephrase, and a prompt
    of every pool that should keep its answer: its own where prompts belong to edits."""
    at = max(stream.owner("holdout", 0), 0) if stream.holdout else 0
    others = []
    for name, pool in (("near", stream.near), ("upstream", stream.upstream)):
        own = [row for n, row in enumerate(pool) if stream.owner(name, n) in (-1, at)]
        others += own[:1]
    rephrases = tuple(row.prompt for row in stream.holdout[:1])
    return replace(stream.edits[at], rephrases=rephrases, locality=tuple(others), portability=())


def through(edited: Edited, layer: nn.Module) -> tuple[Tensor, Tensor]:
    """What goes into a layer of an edited model on its first edited prompt, and what comes out:
    [T, d] and [T, d']."""
    seen: list[tuple[Tensor, Tensor]] = []
    handle = layer.register_forward_hook(lambda _, inputs, out: seen.append((inputs[0], out)))
    try:
        edited.generate(edited.facts[0].prompt, max_new_tokens=1)
    finally:
        handle.remove()
    return seen[0][0][0], seen[0][1][0]


def substituted(study: Study) -> dict[str, list[str]]:
    """Show what differs from the paper in every setting, in words and value by value; the words by
    setting."""
    listed = {setting: substitutions(study, setting) for setting in study.settings}
    for setting, texts in listed.items():
        display(page.text_list(study.title(setting), texts))
        display(page.departures(study, setting, together=True))
    return listed


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


def summary(
    study: Study,
    judged: Mapping[str, claims.Judgement],
    listed: Mapping[str, list[str]],
    *,
    shown: Iterable[tables.Table | None] = (),
    titles: Mapping[str, str] | None = None,
) -> summaries.PaperSummary:
    """What the front page says about a report, our own findings included. The numbers behind every
    verdict are also written as CSV (`<paper>-verdicts`), a row for each row of evidence, and the
    means of all scores (`<paper>-cells`), by which pages can be held against each other.

    `judged`: the claims as every setting judges them. `shown`: the paper's tables with reported
    numbers, whose order of the methods is told. `titles`: how keys of `judged` that are no settings
    are called.
    """
    errors = [f"{title}: {text.strip().splitlines()[-1]}" for title, text in study.errors().items()]
    told = {"claim": verdicts(study, judged, titles), "finding": findings(study)}
    numbers = pd.concat(
        [found.numbers.assign(kind=kind) for kind, found in told.items()], ignore_index=True
    )
    data = {place: data_of(study, place) for place in numbers["setting"].unique()}
    kept(study, f"{study.paper}-verdicts", numbers.assign(data=numbers["setting"].map(data)))
    kept(study, f"{study.paper}-cells", cells(study))
    by_run = study.manifests(sweep=None)
    manifests = list(by_run.values())
    return summaries.PaperSummary(
        key=study.paper,
        title=study.document["title"],
        venue=study.document["venue"],
        summary=study.document["summary"],
        status="partial" if errors else "done",
        report=f"{study.paper}.html",
        scales=tuple(scales(study)),
        orderings=tuple(
            one for table in shown if table is not None for one in orderings(table.cells)
        ),
        claims=_told(told["claim"]),
        findings=_told(told["finding"]),
        substitutions=tuple(
            dict.fromkeys(
                [*page.overridden(study), *(text for texts in listed.values() for text in texts)]
            )
        ),
        runs={run: sum(manifest["seconds"].values()) for run, manifest in by_run.items()},
        errors=tuple(errors),
        profile=study.profile,
        order=study.document["order"],
        short=study.document["short"],
        made=_made(manifests),
    )


def data_of(study: Study, place: str) -> str:
    """The content of the longest stream of a setting, named by its key or in a title; "" where it
    is not a single setting's, or nothing ran."""
    named = [name for name in study.settings if place == name or study.title(name) in place]
    if len(named) != 1:
        return ""
    streams = [manifest["dataset"] for manifest in study.manifests(named[0]).values()]
    longest = max(streams, key=lambda stream: stream["counts"]["edits"], default={})
    return longest.get("content", "")


def cells(study: Study) -> pd.DataFrame:
    """The mean of every score that a claim can read, and its number of rows, for each editor of the
    main tables by data, backbone, protocol, prompts and moment."""
    found = []
    for setting in study.settings:
        records = study.records(setting)
        for run, manifest in study.manifests(setting).items():
            mine = records[records["run"] == run] if len(records) else records
            scores = [name for name in verdict.SCORES if name in mine and mine[name].notna().any()]
            keys = ["editor", "seed", "subset", "moment", "n_edits"]
            if not scores or not set(keys) <= set(mine):
                continue
            long = mine.melt(keys, scores, "score", "mean").dropna(subset="mean")
            long["mean"] = long["mean"].astype(float)
            means = long.groupby([*keys, "score"])["mean"].agg(["size", "mean"]).reset_index()
            spec, backbone = manifest["spec"], manifest["backbone"]
            about = {
                "data": manifest["dataset"]["content"],
                "backbone": backbone.get("content", backbone.get("name", "")),
                "rounds": spec.get("protocol", {}).get("rounds", ""),
                "batch_size": spec["stream"]["batch_size"],
            }
            found.append(means.rename(columns={"size": "n"}).assign(**about))
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def _told(verdicts: claims.Verdicts) -> tuple[summaries.Told, ...]:
    return tuple(
        summaries.Told(
            claim.key, claim.sentence, claim.source, verdicts.titles[place], found.word,
            found.evidence, editor=claim.editor, section=claim.shown, marks=found.marks, n=found.n,
            facts=found.facts, because=claim.because, **_decided(found),
        )
        for place, judged in verdicts.by_setting.items()
        for claim, found in judged.rows
    )  # fmt: skip


def _decided(found: verdict.Verdict) -> dict[str, Any]:
    """The row of evidence that a verdict hangs on, for the front page."""
    row = found.deciding
    if row is None:
        return {}
    shown = {"compared": row.name, "effect": row.mean, "low": row.low, "high": row.high}
    return shown | {"wanted": row.wanted}


def scales(study: Study) -> Iterator[summaries.Scale]:
    """How large every setting with a finished run is, and how far its orders of edits lie apart."""
    for setting in study.settings:
        manifests = list(study.manifests(setting).values())
        if not manifests:
            continue
        records = study.records(setting)
        yield summaries.Scale(
            study.title(setting),
            manifests[0]["backbone"]["name"],
            edits=max(manifest["dataset"]["counts"]["edits"] for manifest in manifests),
            batch=study.batch_size(setting),
            seeds=len({manifest["seed"] for manifest in manifests}),
            editors=tuple(dict.fromkeys(records["editor"])),
            spread=_spread(records),
        )


def _spread(records: pd.DataFrame) -> float:
    """The largest standard deviation over order seeds of an editor's success on all its edits."""
    column = next((name for name in ("exact_match", "answer_accuracy") if name in records), "")
    if not column:
        return math.nan
    rows = records[(records["subset"] == "edits") & (records["moment"] == "end")]
    rows = rows[rows[column].notna()]
    found = [
        spread_over_seeds(mine[column].astype(float), mine["seed"]).sd
        for _, mine in rows.groupby("editor")
    ]
    return max((sd for sd in found if not math.isnan(sd)), default=math.nan)


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
