"""Tests of what editors say of their own training; importing this registers them."""

from collections.abc import Sequence

from lib.report.claims.verdict import (
    AT_MOST,
    NOT_TESTABLE,
    Evidence,
    Material,
    Test,
    Verdict,
    claim_test,
)


@claim_test
def unmoved(editor: str, sweep: str, value: str, columns: Sequence[str], column: str) -> Test:
    """A training leaves some parts of a network exactly where they started. Observations of the
    kind "learned": `columns`, the largest changes of these parts layer by layer; `column` and the
    same with _start, something that does change, for the evidence."""

    def test(material: Material) -> Verdict:
        rows = material.observations
        if rows.empty or "kind" not in rows:
            return Verdict(NOT_TESTABLE, f"No run of {editor} observed what it learned.")
        rows = rows[(rows["kind"] == "learned") & (rows["editor"] == editor)]
        rows = rows[(rows["sweep"] == sweep) & (rows["value"] == value)]
        if rows.empty:
            return Verdict(NOT_TESTABLE, f"No run of {editor} with {sweep} {value} is finished.")
        found = []
        for part in columns:
            most = float(rows[part].max())
            name = f"largest change, {part.removesuffix('_moved')}"
            found.append(Evidence(name, AT_MOST, most, most, most, len(rows), 0, 0.0, exact=True))
        told = "; ".join(f"{row.name}: {row.mean:g}" for row in found)
        start, now = rows[f"{column}_start"].mean(), rows[column]
        moved = f"{column} from {start:.2g} to between {now.min():.2g} and {now.max():.2g}"
        return Verdict.of(found, f"{told}; {moved} over {len(rows)} layers.")

    return test
