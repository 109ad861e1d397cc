"""Tests of claims about ELDER's rule and codes; importing this registers them."""

import dataclasses
from collections.abc import Sequence

from lib.metrics.estimates import estimate
from lib.report.claims.verdict import (
    NOT_TESTABLE,
    VACUOUS,
    Material,
    Test,
    Verdict,
    bounded,
    claim_test,
    on,
    one_bound,
)
from papers.elder.forgetting import LATER, NEAR, RIGHT, answers
from papers.elder.scores import with_scores


@claim_test
def defers(
    editor: str,
    subsets: Sequence[str],
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    beside: Sequence[str] = (),
    setting: str | None = None,
) -> Test:
    """The share of the prompts of `subsets` that an editor's own rule leaves to the unedited model
    is at least, or at most, so large. Observations of ELDER: columns subset, record, deferred.

    Holds and fails by the 95 % interval of the share; in between it is inconclusive. `beside`:
    other subsets; where the rule defers none of their prompts either, that it defers few says
    nothing, and what holds is vacuous.
    """
    one_bound("defers", at_least, at_most)

    def test(material: Material) -> Verdict:
        rows = material.observations
        if rows.empty or "deferred" not in rows:
            return Verdict(NOT_TESTABLE, f"No run of {editor} observed what it defers.")
        rows = rows[(rows["editor"] == editor) & (rows["sweep"] == "")]
        rows = rows if setting is None else rows[rows["setting"] == setting]
        others = rows[rows["subset"].isin(beside)]
        rows = rows[rows["subset"].isin(subsets)]
        found = estimate(rows.assign(deferred=rows["deferred"].astype(float)), "deferred")
        what = f"Share of prompts ({', '.join(map(on, subsets))}) that {editor} defers"
        read = {"metric": "deferred", "subset": ", ".join(subsets)}
        judged = bounded(found, what, at_least, at_most, **read)
        if len(others) and not others["deferred"].any():
            named = ", ".join(map(on, beside))
            text = f"{judged.evidence} Of {len(others)} others ({named}) it defers none either."
            return Verdict.of(judged.rows, text, [VACUOUS])
        return judged

    return test


@claim_test
def codes_move(editor: str, *, at_least: float) -> Test:
    """After the last edit the code that is stored for an edit differs from the one that its prompt
    now gets, for at least this share of the edits. Observations of ELDER: column own_stored, the
    distance between the two in digits."""

    def test(material: Material) -> Verdict:
        rows = material.observations
        if "own_stored" not in rows:
            return Verdict(NOT_TESTABLE, f"No run of {editor} observed its codes.")
        rows = rows[(rows["editor"] == editor) & (rows["sweep"] == "")]
        rows = rows[(rows["subset"] == "edits") & rows["own_stored"].notna()]
        digits = rows["own_stored"].astype(float)
        found = estimate(rows.assign(right=(digits > 0).astype(float)), "right")
        judged = bounded(found, f"Share of edits of {editor} with another code", at_least, None)
        more = f" They differ in {digits.mean():.1f} digits on average." if len(rows) else ""
        return dataclasses.replace(judged, evidence=judged.evidence + more)

    return test


@claim_test
def overwritten(editor: str, *, at_least: float) -> Test:
    """Of an editor's edits that are wrong after the last one, at least this share says the answer
    of a later edit (`forgetting.answers`)."""

    def test(material: Material) -> Verdict:
        records = with_scores(material.records)
        said = answers(records[records["editor"] == editor], material.observations)
        wrong = said[(said["moment"] == "end") & (said["said"] != RIGHT)]
        overwrote = wrong["said"].isin([NEAR, LATER]).astype(float)
        found = estimate(wrong.assign(right=overwrote), "right")
        what = f"Share of the lost edits of {editor} that say a later edit's answer"
        return bounded(found, what, at_least, None)

    return test
