"""The smaller tables of MALMEN's page: data, training, residuals, memory, ablations."""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from lib.metrics.intervals import Difference
from lib.report import page, tables
from lib.report.claims.comparisons import METRIC, NAMES
from lib.report.claims.verdict import paired
from lib.runs.study import Study
from papers.common import kept
from papers.malmen.figures import MEMORY, MIB
from papers.malmen.scores import OWN, RIVAL, observed


def examples(study: Study, setting: str, each: int = 3) -> pd.DataFrame:
    """A few facts before any edit: what is asked, what is to be answered, and what is answered."""
    records = study.records(setting)
    if records.empty:
        return pd.DataFrame()
    first = records[records["run"] == records["run"].iloc[0]]
    shown = first[(first["moment"] == "before") & first["subset"].isin(NAMES)]
    shown = shown[shown["edit_index"].between(0, each - 1)].sort_values(
        ["edit_index", "subset"], kind="stable"
    )
    named = {"edits": "edited prompt", "holdout": "rephrase", "upstream": "unrelated prompt"}
    frame = pd.DataFrame(
        {
            "fact": shown["edit_index"] + 1,
            "kind": shown["subset"].map(named),
            "prompt": shown["prompt"],
            "answer to score": shown["target"],
            "answer before the edits": shown["prediction"],
        }
    )
    return frame.fillna("–").replace("", "–")


def counts(study: Study, setting: str) -> pd.DataFrame:
    """What a setting edits and what its networks learn from, and the backbone's own state."""
    manifest = _trained_manifest(study, setting)
    if manifest is None:
        return pd.DataFrame()
    data, facts, model = manifest["dataset"], manifest["training"], manifest["backbone"]
    rows = [
        ("facts edited and scored", f"{data['counts']['edits']:,}", data["name"]),
        ("facts the networks are trained on", f"{facts['train']:,}", facts["name"]),
        ("facts they are validated on", f"{facts['valid']:,}", facts["name"]),
        ("backbone", model["name"], model["provenance"]),
    ]
    return pd.DataFrame(rows, columns=["what", "amount", "where it comes from"])


def training_examples(study: Study, setting: str) -> pd.DataFrame:
    """The first facts that the networks learn from, as their runs kept them."""
    manifest = _trained_manifest(study, setting)
    shown = manifest["training"].get("examples", ()) if manifest else ()
    rows = [
        (number, kind, fact[prompt], fact[target])
        for number, fact in enumerate(shown, start=1)
        for kind, prompt, target in (
            ("edited prompt", "prompt", "target"),
            ("rephrase", "rephrase", "target"),
            ("unrelated prompt", "unrelated", "unrelated_target"),
        )
    ]
    return pd.DataFrame(rows, columns=["training fact", "kind", "prompt", "answer"])


def _trained_manifest(study: Study, setting: str) -> dict[str, Any] | None:
    manifests = study.manifests(setting).values()
    return next((found for found in manifests if found.get("training")), None)


@tables.regenerated("training")
def learned(study: Study, setting: str) -> pd.DataFrame:
    """Per trained network: steps, facts seen, seconds, and validation scores at start and end."""
    trainings = observed(study, setting, "training").sort_values(["m", "editor", "cached"])
    curves = observed(study, setting, "curve")
    rows = []
    for training in trainings.drop_duplicates(["editor", "m"]).itertuples():
        mine = curves[(curves["run"] == training.run)].sort_values("step")
        row: dict[str, Any] = {
            "editor": training.editor,
            "trained for m": int(training.m),
            "meta-steps": int(training.steps),
            "facts seen": f"{int(training.facts):,}",
            "seconds": f"{training.seconds:.1f}" + (" (from the cache)" if training.cached else ""),
        }
        for subset in NAMES.values():
            row[f"validation {subset}"] = _change(mine, f"valid_{subset}")
        rows.append(row)
    return kept(study, f"malmen-training-{setting}", pd.DataFrame(rows))


def _change(curve: pd.DataFrame, column: str) -> str:
    """ "0.21 → 0.64": the first and the last value of a curve."""
    known = curve[column].dropna() if column in curve else pd.Series(dtype=float)
    return f"{known.iloc[0]:.2f} → {known.iloc[-1]:.2f}" if len(known) else tables.MISSING


@tables.regenerated("residuals")
def residuals(study: Study, setting: str) -> pd.DataFrame:
    """Means over the edited layers of MALMEN's own rows: how both shifts fit them, per m."""
    rows = observed(study, setting, "module")
    rows = rows[rows["editor"] == OWN]
    if rows.empty:
        return pd.DataFrame()
    names = {
        "rows": "rows per layer", "residual": "|K S − D| / |D|, least squares",
        "summed_residual": "|K S − D| / |D|, plain sum", "shift_norm": "|S|, least squares",
        "summed_norm": "|S|, plain sum", "eta": "η", "ridge": "λ",
    }  # fmt: skip
    means = rows.groupby("m")[list(names)].mean()
    shown = means.rename(columns=names).map(lambda value: f"{value:.3g}")
    frame = shown.reset_index().rename(columns={"m": "facts at once, m"})
    return kept(study, f"malmen-residuals-{setting}", frame)


@tables.regenerated("memory")
def memory(study: Study, setting: str) -> pd.DataFrame:
    """MiB that the passes of one meta-step keep, joint and decoupled, and that the rows take."""
    rows = observed(study, setting, "memory")
    if rows.empty:
        return pd.DataFrame()
    rows = rows[rows["editor"].isin([OWN, RIVAL])].drop_duplicates(["editor", "m"])
    frame = rows.sort_values(["editor", "m"], kind="stable")[["editor", "m"]].copy()
    for column, name in MEMORY.items():
        frame[f"{name}, MiB"] = (rows[column] / MIB).map(tables.number)
    return kept(study, f"malmen-memory-{setting}", frame)


def ablation_rows(study: Study, setting: str) -> pd.DataFrame:
    """Each ablation minus MALMEN on the same prompts at the usual m: key, what, variant, subset,
    mean, low, high, n, p; n = 0 for an ablation that this profile leaves out."""
    found = []
    base = _right_after(study.records(setting))
    base = base[base["editor"] == OWN]
    for key, what, variant in _variants(study, setting):
        for subset in NAMES:
            d = _difference(variant, base, subset)
            found.append((key, what, subset, d.mean, d.low, d.high, d.n, d.p))
    names = ["key", "what", "subset", "mean", "low", "high", "n", "p"]
    frame = pd.DataFrame(found, columns=names)
    frame["variant"] = "(" + frame["key"] + ") " + frame["what"]
    return kept(study, f"malmen-ablations-{setting}", frame)


def ablations(rows: pd.DataFrame) -> pd.DataFrame:
    """`ablation_rows` as the page's table: a line per ablation that was run, a column per score."""
    done = rows[rows["n"] > 0]
    text = [
        _signed(row.mean, row.low, row.high) for row in done[["mean", "low", "high"]].itertuples()
    ]
    wide = done.assign(text=text, name=done["subset"].map(NAMES))
    if wide.empty:
        return pd.DataFrame()
    counts = wide.groupby("variant")["n"].agg(
        lambda n: f"{n.min()}–{n.max()}" if n.nunique() > 1 else n.min()
    )
    wide = wide.pivot_table(
        index="variant", columns="name", values="text", aggfunc="first", sort=False
    )
    shown = wide[list(NAMES.values())].assign(n=counts)
    return shown.reset_index().rename(columns={"variant": "instead"}).rename_axis(columns=None)


def left_out(rows: pd.DataFrame) -> str:
    """The ablations that a profile does not run, as an HTML paragraph; "" for none."""
    names = dict.fromkeys(rows.loc[rows["n"] == 0, "variant"])
    return page.paragraphs([f"{'; '.join(names)}: {tables.NOT_RUN}."] if names else [])


def _signed(mean: float, low: float, high: float) -> str:
    middle, low, high = (f"{value:+.2f}".replace("-", "−") for value in (mean, low, high))
    return f"{middle} [{low}, {high}]"


def _variants(study: Study, setting: str) -> Iterator[tuple[str, str, pd.DataFrame]]:
    records = _right_after(study.records(setting))
    for entry in study.document["tables"]["ablations"]:
        if "editor" in entry:
            part = records[records["editor"] == entry["editor"]]
        else:
            swept = _right_after(study.records(setting, entry["sweep"]))
            part = swept[swept["value"] == str(entry["value"])]
        yield entry["key"], entry["what"], part


def _right_after(records: pd.DataFrame) -> pd.DataFrame:
    return records[records["moment"] == "own"] if "moment" in records else records


def _difference(a: pd.DataFrame, b: pd.DataFrame, subset: str) -> Difference:
    sides = [part[part["subset"] == subset] if len(part) else part for part in (a, b)]
    if any(part.empty for part in sides):
        nan = float("nan")
        return Difference(nan, nan, nan, 0, 0, "none")
    return paired(*sides, METRIC)
