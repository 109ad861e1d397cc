"""What every paper's page must have, checked on its notebook and its YAML."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lib.report.claims.claims import Judgement
from lib.report.claims.verdict import FAILS, HOLDS, NOT_TESTABLE, TESTS
from lib.report.summaries import PaperSummary


def markdown_of(notebook: Path) -> str:
    """All markdown cells of a notebook, one after the other."""
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    return "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


def check_claims_and_deviations(document: Mapping[str, Any], notebook: Path) -> None:
    """Every claim leads to a section that exists and has a known test and a source, as every
    finding of our own does that leads anywhere; every deviation says all four things."""
    lines = markdown_of(notebook).splitlines()
    headings = {line.lstrip("# ") for line in lines if line.startswith("#")}
    for claim in document["claims"]:
        assert claim["shown"] in headings, claim["key"]
        assert claim["test"] in TESTS and claim["source"], claim["key"]
        keys = {finding["key"] for finding in document["findings"]}
        assert set(claim.get("because", ())) <= keys, claim["key"]
    assert len(document["findings"]) >= 2 and "Findings of our own" in headings
    for finding in document["findings"]:
        assert finding.get("shown", "Findings of our own") in headings, finding["key"]
        assert finding["test"] in TESTS and finding["source"] and finding["editor"], finding["key"]
    parts = {"paper", "code", "here", "effect"}
    assert all(set(entry) == parts for entry in document["deviations"])


def check_summary(
    summary: PaperSummary, verdicts: Mapping[str, Judgement], settings: set[str]
) -> None:
    """The front page is told every claim as every one of these settings (titles) judges it, and
    findings that were really judged."""
    told = [(one.setting, one.key, one.verdict, one.evidence) for one in summary.claims]
    assert len(told) == sum(len(judged.rows) for judged in verdicts.values())
    assert {place for place, *_ in told} == settings and all(one.editor for one in summary.claims)
    judged = [found.evidence for one in verdicts.values() for _, found in one.rows]
    assert [evidence for *_, evidence in told] == judged
    assert any(one.verdict in (HOLDS, FAILS) for one in summary.findings)


def check_findings_of_nothing(summary: PaperSummary) -> None:
    """Without runs no finding can be tested, because rows are missing and not because it broke."""
    for one in summary.findings:
        assert one.verdict == NOT_TESTABLE and "could not run" not in one.evidence, one
