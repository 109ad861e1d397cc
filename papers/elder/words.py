"""What the runs say about the deferral rule, in sentences made from their numbers."""

from collections.abc import Iterator

import pandas as pd

from lib.report import page
from lib.runs.study import Study
from papers.elder.deferral import (
    PROMPTS,
    UNRELATED,
    Rule,
    by_chance,
    distances,
    simulated_rates,
    simulations,
)
from papers.elder.scores import EXTENSIONS, OWN, REFRESHED, scored
from papers.elder.simulation import code_counts

MOST = 0.5
RECOMPUTED = "With codes recomputed by the final routers"


def deferral_text(study: Study, setting: str) -> str:
    """Whether the rule deferred, as HTML paragraphs; every sentence follows from the rows."""
    rows = distances(study, setting)
    main = {name: _main(rows, name) for name in (OWN, *EXTENSIONS)}
    if main[OWN].empty:
        return page.paragraphs(["No run of ELDER observed its distances."])
    own = main[OWN]
    parts = [_shape(own), _rates(own), _reading(own), _expected(study, setting, own), _stale(own)]
    parts += [_passed(study, setting)]
    for name in EXTENSIONS:
        if len(again := main[name]):
            how = RECOMPUTED if name == REFRESHED else f"{RECOMPUTED} that are fitted first, {name}"
            parts += [f"{how}: {_shape(again)}", _rates(again), _reading(again)]
    return page.paragraphs(_paragraphs(parts))


def _paragraphs(parts: list[str]) -> Iterator[str]:
    """The sentences in paragraphs: shape and rates, reading, what was expected, each variant."""
    for start, end in ((0, 3), (3, 4), (4, 6), (6, 9), (9, None)):
        text = " ".join(part for part in parts[start:end] if part)
        if text:
            yield text


def _main(rows: pd.DataFrame, editor: str) -> pd.DataFrame:
    return rows[(rows["editor"] == editor) & (rows["sweep"] == "")]


def _shape(rows: pd.DataFrame) -> str:
    first = rows.iloc[0]
    layers, experts, k = (int(first[name]) for name in ("layers", "experts", "k"))
    distinct = "distinct_refreshed" if first["refresh"] else "distinct"
    return (
        f"L = {layers} layers, N = {experts} experts, k = {k}, epsilon = {int(first['epsilon'])}; "
        f"{int(first['n_stored']):,} edits left {int(first[distinct]):,} different codes of the "
        f"{sum(code_counts(layers, experts, k)):,} that there are."
    )


def _rates(rows: pd.DataFrame) -> str:
    told = [
        f"{int(part['deferred'].sum()):,} of {len(part):,} ({PROMPTS[subset]})"
        for subset in PROMPTS
        if len(part := rows[rows["subset"] == subset])
    ]
    return f"Deferred after the last edit: {', '.join(told)}."


def _reading(rows: pd.DataFrame) -> str:
    others = rows[rows["subset"].isin(UNRELATED)]["deferred"].astype(float)
    own = rows[rows["subset"] == "edits"]["deferred"].astype(float).mean()
    if others.empty:
        said = "No unrelated prompt was asked."
    elif others.mean() == 0:
        said = "The rule deferred no unrelated prompt: all of them went through the adapters."
    elif others.mean() <= MOST:
        said = (
            f"The rule deferred {_percent(others.mean())} of the unrelated prompts; the others "
            "went through the adapters."
        )
    else:
        said = f"The rule deferred {_percent(others.mean())} of the unrelated prompts."
    if own > 0:
        said += f" It also deferred {_percent(own)} of the edits: the unedited model answers them."
    return said


def _expected(study: Study, setting: str, rows: pd.DataFrame) -> str:
    rule = Rule("stored", int(rows["epsilon"].iloc[0]))
    alone = [
        f"{_percent(simulated_rates(routers, rule)['upstream'])} ({name.split(', ')[1]} between "
        "queries)"
        for name, routers in simulations(study, setting, rows).items()
    ]
    return (
        f"Expected: if codes were random, {_percent(by_chance(rows, rule))} of unrelated prompts "
        "would be deferred by as many different codes; routers alone, trained without a language "
        f"model on as many batches of as many steps, defer {' or '.join(alone)}."
    )


def _stale(rows: pd.DataFrame) -> str:
    edits = rows[(rows["subset"] == "edits") & rows["own_stored"].notna()]
    if edits.empty:
        return ""
    digits = edits["own_stored"].astype(float)
    length = int(edits["experts"].iloc[0] * edits["layers"].iloc[0])
    return (
        f"The code stored for an edit differs from the one that the routers give its prompt after "
        f"the last edit in {digits.mean():.1f} of {length} digits on average, at most in "
        f"{digits.max():.0f}; that code from the one that its answer was allocated in "
        f"{edits['own_allocation'].astype(float).mean():.1f}."
    )


def _passed(study: Study, setting: str) -> str:
    """What happened to unrelated prompts that the rule let pass."""
    records = scored(study, setting)
    rows = records[(records["editor"] == OWN) & (records["moment"] == "end")]
    rows = rows[rows["subset"].isin(UNRELATED) & (rows["route"] != "base")]
    if rows.empty:
        return ""
    kept = _percent(rows["same_answers"].mean())
    return (
        f"Of the {len(rows):,} unrelated prompts that it let pass, {kept} kept the unedited "
        "model's first choice at every token of the answer."
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
