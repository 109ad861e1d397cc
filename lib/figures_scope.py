"""Figures of the scope study: which tokens are outliers, and which prompts can have one at all."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from lib.metrics.intervals import facts, mean_interval
from lib.report.figures.parts import counted, having, stacked
from lib.report.figures.style import INK, MUTED, Plot, legend, looks, panels, say, use_style

SUBSETS = ("edits", "holdout", "near", "upstream")
TITLES = {
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
            name: mean_interval(part[column], groups=units)
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
                by: editor, "prompts": TITLES.get(subset, subset), "n": len(part),
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
        for subset in SUBSETS
        if ((rows["editor"] == editor) & (rows["subset"] == subset)).any()
    ]
    several, edges, parts = rows["editor"].nunique() > 1, _edges(rows["z"], bins), []
    with use_style():
        figure, axes = panels(len(places), height=2.6)
        if not places:
            say(axes[0], "Empty: no z scores were kept.")
        for panel, (editor, subset) in zip(axes, places, strict=False):
            panel.set_title(f"{editor}: {TITLES[subset].lower()}" if several else TITLES[subset])
            part = rows[(rows["editor"] == editor) & (rows["subset"] == subset)]
            parts.append(_outlines(panel, part, edges).assign(editor=editor, subset=subset))
            _alpha_line(panel, part["alpha"], vertical=True)
            panel.set(xlabel="z score", ylabel="density")
            panel.set_ylim(bottom=0)
        legend(figure, axes)
    return Plot(figure, stacked(parts), _about(rows))


def _edges(values: pd.Series, bins: int) -> np.ndarray:
    if values.empty:
        return np.linspace(-3, 3, bins + 1)
    low, high = float(values.min()), float(values.max())
    return np.linspace(low - 0.1, max(high, low + 1) + 0.1, bins + 1)


def _outlines(panel: Axes, part: pd.DataFrame, edges: np.ndarray) -> pd.DataFrame:
    found = []
    for kind, colour, line, hatch in (
        (OTHER, MUTED, "--", "///"), (SUBJECT, "#0072B2", "-", ""),
    ):  # fmt: skip
        values = part.loc[part["kind"] == kind, "z"].to_numpy(float)
        if not len(values):
            continue
        heights, _ = np.histogram(values, bins=edges, density=True)
        panel.stairs(
            heights, edges, color=colour, linestyle=line, linewidth=1.6, label=kind, zorder=3
        )
        panel.stairs(heights, edges, fill=True, facecolor=colour, alpha=0.14, hatch=hatch)
        found.append(
            pd.DataFrame({
                "tokens": kind, "z_from": edges[:-1], "z_to": edges[1:],
                "density": heights, "n": len(values),
            })
        )  # fmt: skip
    return pd.concat(found, ignore_index=True)


def z_bound(observations: pd.DataFrame, *, initial: float | None = None) -> Plot:
    """Largest z of each prompt against its number of tokens, a panel per editor.

    No point lies above the bound (n - 1) / sqrt(n); prompts left of where the bound crosses alpha
    can never be edited.
    """
    prompts = per_prompt(observations).dropna(subset=["z"])
    names = list(dict.fromkeys(prompts["editor"]))
    longest = float(max([12, *prompts["tokens"]])) + 1
    with use_style():
        figure, axes = panels(len(names), height=3.4)
        if not names:
            say(axes[0], "Empty: no z scores were kept.")
        for panel, name in zip(axes, names, strict=False):
            panel.set_title(str(name))
            _under_the_bound(panel, prompts[prompts["editor"] == name], longest)
            if initial is not None:
                panel.axhline(
                    initial, color=MUTED, linestyle=":", label=f"initial alpha {initial:g}"
                )
        legend(figure, axes)
    return Plot(figure, prompts, _about(prompts))


def _under_the_bound(panel: Axes, prompts: pd.DataFrame, longest: float) -> None:
    for place, (subset, look) in enumerate(looks(SUBSETS).items()):
        part = prompts[prompts["subset"] == subset]
        if len(part):
            shift = (place - 1.5) * 0.16  # kinds of prompts side by side
            panel.scatter(
                part["tokens"] + shift, part["z"], s=18, color=look.colour, alpha=0.75,
                marker=look.marker, linewidth=0, label=TITLES[subset], zorder=3,
            )  # fmt: skip
    tokens = np.linspace(1, longest, 200)
    panel.plot(tokens, bound(tokens), color=INK, linewidth=1.4, label="bound (n − 1)/√n")
    _alpha_line(panel, prompts["alpha"], vertical=False)
    panel.set(xlabel="tokens n in the scope statistic", ylabel="largest z of the prompt")
    panel.set_xlim(0.5, longest)


def _alpha_line(panel: Axes, alphas: pd.Series, *, vertical: bool) -> None:
    draw = panel.axvline if vertical else panel.axhline
    for i, alpha in enumerate(sorted(alphas.dropna().unique())):
        label = "alpha after the last batch" if i == 0 else None
        draw(float(alpha), color="#D55E00", linestyle=(0, (5, 2)), linewidth=1.4, label=label)


def _about(rows: pd.DataFrame) -> str:
    if rows.empty:
        return "No rows."
    prompts = rows.drop_duplicates([name for name in PROMPT if name in rows])
    layers = rows["layer"].unique() if "layer" in rows else ()
    where = f", layer {', '.join(f'{x:g}' for x in layers)}" if len(layers) else ""
    backbones = " + ".join(dict.fromkeys(rows["backbone"])) if "backbone" in rows else ""
    about = counted(len(facts(prompts["record"])), "prompt")
    return f"{about}, {counted(rows['run'].nunique(), 'run')}{where}; {backbones}".strip("; ") + "."
