"""Figures of consecutive editing: scores by step in two readings, thresholds, size of the state."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from lib.metrics.costs import SIZES
from lib.metrics.estimates import estimate
from lib.metrics.intervals import facts
from lib.report.figures.parts import (
    Panel,
    about_rows,
    counted,
    having,
    levels,
    lines,
    means,
    outline,
    score_axis,
    stacked,
)
from lib.report.figures.style import (
    ALERT,
    BLUE,
    DASHED,
    DOTTED,
    INK,
    LINES,
    MARKERS,
    MUTED,
    Look,
    Plot,
    legend,
    looks,
    panels,
    say,
    use_style,
)

TRUE, PRINTED = "model after n edits", "as the official loop prints it"
TITLES = {
    "edits": "Reliability", "holdout": "Generality", "locality": "Locality", "average": "Average",
    "parameters": "Numbers added to the backbone", "stored_floats": "Numbers kept for later",
}  # fmt: skip


def both_readings(records: pd.DataFrame) -> pd.DataFrame:
    """Rows of edits applied so far, with `reading`: what "the score after n edits" can mean.

    `TRUE`: the model after n edits on its first n edits (checkpoint and end rows). `PRINTED`: the
    final model on the first n edits, which is what the official consecutive loop prints, because
    its snapshots share their result lists. Rows need `edit_index`, `moment` and `n_edits`.
    """
    rows = having(records, "edit_index", "moment", "n_edits", "run", "editor")
    rows = rows[rows["moment"].isin(["checkpoint", "end"]) & (rows["edit_index"] >= 0)]
    true = rows[rows["edit_index"] < rows["n_edits"]].assign(reading=TRUE)
    parts = [true]
    for _, run in true.groupby("run", sort=False):
        end = run[run["moment"] == "end"]
        for n in sorted(run["n_edits"].unique()):
            early = end[end["edit_index"] < n]
            parts.append(early.assign(n_edits=n, reading=PRINTED))
    filled = [part for part in parts if len(part)]
    return pd.concat(filled, ignore_index=True) if filled else true


def by_step(
    records: pd.DataFrame,
    metric: str,
    *,
    subsets: Sequence[str] = ("edits", "holdout", "locality"),
    by: str = "editor",
    titles: Mapping[str, str] | None = None,
    ylabel: str | None = None,
    printed: bool = True,
) -> Plot:
    """Score of all edits so far against edits applied, a line per `by`.

    A row of panels per subset: left the model after n edits, right (`printed`) what the official
    loop prints for n.
    """
    rows = having(both_readings(records), metric, by, "subset")
    rows = rows[rows["subset"].isin(subsets)]
    readings = (TRUE, PRINTED) if printed else (TRUE,)
    data = means(rows, metric, ["subset", "reading", by, "n_edits"])
    data = data[data["reading"].isin(readings)]
    style, called = looks(dict.fromkeys(rows[by])), {**TITLES, **(titles or {})}
    shown = []
    for subset, reading in itertools.product(subsets, readings):
        name = called.get(subset, subset)
        part = data[(data["subset"] == subset) & (data["reading"] == reading)]
        level = levels(records, metric, subset)
        shown.append(Panel(f"{name}: {reading}" if printed else name, part, levels=level))

    def finish(panel: Axes, _: pd.DataFrame) -> None:
        panel.set_xlabel("edits applied")
        panel.set_xticks(sorted(data["n_edits"].unique())[:12])
        score_axis(panel, ylabel or metric)

    facts = about_rows(rows, data, "Editors stand side by side at each number of edits.")
    return lines(
        shown, "n_edits", by, style, finish, data=data, caption=facts, height=2.4, whiskers=True
    )


def thresholds(steps: pd.DataFrame, *, by: str = "editor", initial: float | None = None) -> Plot:
    """The threshold alpha of each edited layer (columns `alpha_<block>`) after every batch.

    One panel per `by`; `initial` is drawn dotted. Seeds are averaged.
    """
    columns = [name for name in steps if str(name).startswith("alpha_")]
    rows = having(steps, "n_edits", by, "run")
    long = rows.melt(
        id_vars=["run", by, "n_edits"], value_vars=columns, var_name="layer", value_name="alpha"
    ).dropna(subset=["alpha"])
    long["layer"] = long["layer"].str.removeprefix("alpha_").astype(int)
    data = means(long, "alpha", [by, "layer", "n_edits"])
    names = [name for name in dict.fromkeys(rows[by]) if name in set(data[by])]
    layers = sorted(data["layer"].unique())
    style = {f"layer {block}": look for block, look in zip(layers, _ladder(layers), strict=True)}
    drawn = data.assign(which="layer " + data["layer"].astype(str))

    def finish(panel: Axes, _: pd.DataFrame) -> None:
        if initial is not None:
            panel.axhline(initial, color=MUTED, linestyle=DOTTED, label="initial alpha")
        panel.set(xlabel="edits applied", ylabel="alpha")

    shown = [Panel(str(name), drawn[drawn[by] == name]) for name in names]
    empty = "No thresholds recorded."
    runs = counted(long["run"].nunique(), "run") if names else "no run"
    caption = f"Read off the editor after each batch; {runs}."
    return lines(
        shown,
        "n_edits",
        "which",
        style,
        finish,
        data=data,
        caption=caption,
        height=2.5,
        empty=empty,
    )


def state_size(steps: pd.DataFrame, *, columns: Sequence[str] = SIZES, by: str = "editor") -> Plot:
    """Numbers that an editor adds and keeps, against edits applied: flat if memory is constant."""
    shown = []
    for column in columns:
        part = means(having(steps, column, by, "n_edits"), column, [by, "n_edits"])
        part = part.assign(quantity=column)
        shown.append(Panel(TITLES.get(column, column), part, why=f"no {column} counted"))

    def finish(panel: Axes, part: pd.DataFrame) -> None:
        panel.set(xlabel="edits applied", ylabel="count")
        low, high = part["mean"].min(), part["mean"].max()
        if high > 0 and low < high / 50:
            panel.set_yscale("symlog", linthresh=max(1.0, _smallest(part["mean"])))
            panel.set_ylabel("count (logarithmic above zero)")
        panel.set_ylim(bottom=0)

    style = looks(dict.fromkeys(having(steps, by)[by]))
    runs = steps["run"].nunique() if "run" in steps else 0
    facts = f"Counted after each batch; {counted(runs, 'run')}. A number is 4 bytes in float32."
    data = stacked([panel.rows for panel in shown])
    return lines(shown, "n_edits", by, style, finish, data=data, caption=facts)


def _smallest(values: pd.Series) -> float:
    positive = values[values > 0]
    return float(positive.min()) if len(positive) else 1.0


def _ladder(layers: Sequence[int]) -> list[Look]:
    """Looks for ordered layers: one hue from pale to dark, each with its own marker and line."""
    shades = sns.color_palette("Blues_d", len(layers)).as_hex()
    return [
        Look(shade, MARKERS[i % len(MARKERS)], LINES[i % len(LINES)])
        for i, shade in enumerate(shades)
    ]


SCOPE_TITLES = {
    "edits": "Edited prompts", "holdout": "Rephrases", "near": "Near prompts",
    "upstream": "Upstream questions",
}  # fmt: skip
SUBJECT, OTHER = "subject's last token", "all other tokens"
PROMPT = ["run", "editor", "subset", "record"]


def bound(tokens: np.ndarray | pd.Series | float) -> np.ndarray | pd.Series | float:
    """The largest z score that n tokens can have: (n - 1) / sqrt(n), one outlier, all others equal.

    The standard deviation is the sample's (n - 1).
    """
    return (tokens - 1) / np.sqrt(tokens)


def per_prompt(observations: pd.DataFrame) -> pd.DataFrame:
    """One row per prompt: tokens, alpha, largest z, whether the bound lies below alpha, whether
    anything, the subject's last token, or another token was swapped (0/1)."""
    needed = (*PROMPT, "edit_index", "tokens", "alpha", "swapped", "is_subject")
    rows = having(observations, *needed)
    rows = rows if "z" in rows else rows.assign(z=np.nan)
    swapped = rows["swapped"].astype(bool)
    subject = rows["is_subject"].astype(bool)
    rows = rows.assign(
        z=pd.to_numeric(rows["z"], errors="coerce"),
        subject_swapped=swapped & subject, other_swapped=swapped & ~subject, any_swapped=swapped,
        has_subject=subject,
    )  # fmt: skip
    found = rows.groupby(PROMPT, sort=False, as_index=False).agg(
        edit_index=("edit_index", "first"), tokens=("tokens", "first"), alpha=("alpha", "first"),
        z=("z", "max"), any_swapped=("any_swapped", "max"),
        subject_swapped=("subject_swapped", "max"), other_swapped=("other_swapped", "max"),
        has_subject=("has_subject", "max"),
    )  # fmt: skip
    flags = ["any_swapped", "subject_swapped", "other_swapped", "has_subject"]
    found[flags] = found[flags].astype(float)
    found["unreachable"] = (bound(found["tokens"].astype(float)) < found["alpha"]).astype(float)
    return found


def shares(observations: pd.DataFrame, by: str = "editor") -> pd.DataFrame:
    """Per editor and subset: prompts, tokens, and shares of prompts with their 95 % intervals."""
    prompts = per_prompt(observations)
    rows = []
    for (editor, subset), part in prompts.groupby([by, "subset"], sort=False):
        units = [
            f"{run}/{index}" for run, index in zip(part["run"], part["edit_index"], strict=True)
        ]
        share = {
            name: estimate(part.assign(unit=units, right=part[column]), "right")
            for name, column in (
                ("can never reach alpha", "unreachable"), ("something swapped", "any_swapped"),
                ("subject's last token swapped", "subject_swapped"),
                ("another token swapped", "other_swapped"),
            )
        }  # fmt: skip
        if not part["has_subject"].any():
            share["subject's last token swapped"] = None
        rows.append(
            {
                by: editor, "prompts": SCOPE_TITLES.get(subset, subset), "n": len(part),
                "tokens (median)": f"{part['tokens'].median():g}",
                "alpha": f"{part['alpha'].mean():.2f}",
            }
            | {name: _share(interval) for name, interval in share.items()}
        )  # fmt: skip
    return pd.DataFrame(rows)


def _share(interval: object) -> str:
    if interval is None:
        return "holds no subject"
    text = f"{interval.mean:.2f}"
    return f"{text} [{interval.low:.2f}, {interval.high:.2f}]" if interval.known else text


def z_distributions(observations: pd.DataFrame, *, bins: int = 28) -> Plot:
    """Distribution of z of the subject's last token and of all other tokens.

    A panel per editor and kind of prompt. Each outline has area one; the dashed line is alpha
    after the last batch.
    """
    rows = having(observations, "z", "subset", "is_subject", "alpha", "editor")
    rows = rows.assign(z=pd.to_numeric(rows["z"], errors="coerce")).dropna(subset=["z"])
    kinds = np.where(rows["is_subject"].astype(bool), SUBJECT, OTHER)
    rows = rows.assign(kind=kinds)
    places = [
        (editor, subset)
        for editor in dict.fromkeys(rows["editor"])
        for subset in SCOPE_TITLES
        if ((rows["editor"] == editor) & (rows["subset"] == subset)).any()
    ]
    several, edges, parts, told = rows["editor"].nunique() > 1, _edges(rows["z"], bins), [], []
    with use_style():
        figure, axes = panels(len(places), height=2.2)
        if not places:
            say(axes[0], "Empty: no z scores were kept.")
        for panel, (editor, subset) in zip(axes, places, strict=False):
            kind = SCOPE_TITLES[subset]
            panel.set_title(f"{editor}:\n{kind.lower()}" if several else kind)
            part = rows[(rows["editor"] == editor) & (rows["subset"] == subset)]
            parts.append(_outlines(panel, part, edges).assign(editor=editor, subset=subset))
            told.append(_reached(f"{editor}, {SCOPE_TITLES[subset].lower()}", part))
            _alpha_line(panel, part["alpha"], vertical=True)
            panel.set(xlabel="z score", ylabel="density")
            panel.set_ylim(bottom=0)
        legend(figure, axes)
    return Plot(figure, stacked(parts), _about(rows), " ".join(told))


def _reached(name: str, part: pd.DataFrame) -> str:
    """How many tokens of each kind reach alpha."""
    over = part["z"] >= part["alpha"].astype(float)
    told = ", ".join(
        f"{kind} {over[part['kind'] == kind].mean():.0%}"
        for kind in (SUBJECT, OTHER) if (part["kind"] == kind).any()
    )  # fmt: skip
    return f"Share of tokens that reach alpha, {name}: {told}."


def _edges(values: pd.Series, bins: int) -> np.ndarray:
    if values.empty:
        return np.linspace(-3, 3, bins + 1)
    low, high = float(values.min()), float(values.max())
    return np.linspace(low - 0.1, max(high, low + 1) + 0.1, bins + 1)


def _outlines(panel: Axes, part: pd.DataFrame, edges: np.ndarray) -> pd.DataFrame:
    found = []
    for kind, look in (
        (OTHER, Look(MUTED, "", DASHED)),
        (SUBJECT, Look(BLUE, "")),
    ):
        values = part.loc[part["kind"] == kind, "z"].to_numpy(float)
        if not len(values):
            continue
        heights = outline(panel, values, edges, look, kind, density=True)
        found.append(
            pd.DataFrame({
                "tokens": kind, "z_from": edges[:-1], "z_to": edges[1:],
                "density": heights, "n": len(values),
            })
        )  # fmt: skip
    return pd.concat(found, ignore_index=True)


def z_bound(observations: pd.DataFrame, *, initial: float | None = None) -> Plot:
    """Largest z of prompts against their number of tokens n: a panel per editor, for each kind of
    prompt the median and the middle half of the prompts of that length.

    No prompt lies above the bound (n - 1) / sqrt(n); where it lies below alpha none can be edited.
    """
    prompts = per_prompt(observations).dropna(subset=["z"])
    names, kinds = list(dict.fromkeys(prompts["editor"])), looks(SCOPE_TITLES)
    data = prompts.groupby(["editor", "subset", "tokens"], sort=False, as_index=False).agg(
        low=("z", lambda z: z.quantile(0.25)), mean=("z", "median"),
        high=("z", lambda z: z.quantile(0.75)), n=("z", "size"),
    )  # fmt: skip
    longest = float(max([12, *prompts["tokens"]])) + 1
    with use_style():
        figure, axes = panels(len(names), height=3.2)
        if not names:
            say(axes[0], "Empty: no z scores were kept.")
        for panel, name in zip(axes, names, strict=False):
            panel.set_title(str(name))
            for place, (subset, look) in enumerate(kinds.items()):
                part = data[(data["editor"] == name) & (data["subset"] == subset)]
                x = part["tokens"] + (place - 1.5) * 0.18  # kinds of prompts side by side
                panel.vlines(x, part["low"], part["high"], color=look.colour, linewidth=1.1)
                sns.scatterplot(x=x, y=part["mean"], s=22, color=look.colour, marker=look.marker,
                                linewidth=0, label=SCOPE_TITLES[subset], zorder=3, legend=False,
                                ax=panel)  # fmt: skip
            tokens = np.linspace(1, longest, 60)
            panel.plot(tokens, bound(tokens), color=INK, linewidth=1.4, label="bound (n − 1)/√n")
            _alpha_line(panel, prompts.loc[prompts["editor"] == name, "alpha"], vertical=False)
            panel.set(xlabel="tokens n in the scope statistic", ylabel="largest z of the prompt")
            panel.set_xlim(0.5, longest)
            if initial is not None:
                panel.axhline(initial, color=MUTED, linestyle=DOTTED,
                              label=f"initial alpha {initial:g}")  # fmt: skip
        legend(figure, axes)
    told = length_decides(prompts)
    facts = f"{told} Marks: median of the prompts of a length; lines: their middle half."
    return Plot(figure, data, f"{facts} {_about(prompts)}".strip(), told)


def length_decides(prompts: pd.DataFrame) -> str:
    """How near edited prompts come to the bound, in words: their z then follows their length.

    `prompts`: rows of `per_prompt` with z. Spearman's rank correlation.
    """
    told = []
    for name, part in prompts[prompts["subset"] == "edits"].groupby("editor", sort=False):
        share = part["z"] / bound(part["tokens"].astype(float))
        ranks = part[["tokens", "z"]].astype(float).corr("spearman").loc["tokens", "z"]
        told.append(
            f"{name}: the z of half of the {len(part):,} edited prompts lies within "
            f"{1 - share.median():.0%} of the most that their length allows, and ranks as their "
            f"length does (correlation {ranks:.2f})"
        )
    return f"{'; '.join(told)}." if told else ""


def _alpha_line(panel: Axes, alphas: pd.Series, *, vertical: bool) -> None:
    draw = panel.axvline if vertical else panel.axhline
    for i, alpha in enumerate(sorted(alphas.dropna().unique())):
        label = "alpha after the last batch" if i == 0 else None
        draw(float(alpha), color=ALERT, linestyle=DASHED, linewidth=1.4, label=label)


def _about(rows: pd.DataFrame) -> str:
    if rows.empty:
        return "No rows."
    prompts = rows.drop_duplicates([name for name in PROMPT if name in rows])
    layers = rows["layer"].unique() if "layer" in rows else ()
    where = f", layer {', '.join(f'{x:g}' for x in layers)}" if len(layers) else ""
    about = counted(len(facts(prompts["record"])), "prompt")
    return f"{about}, {counted(rows['run'].nunique(), 'run')}{where}."
