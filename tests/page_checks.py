"""What every paper's page must have, checked on its notebook and its YAML."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lib.claims import TESTS


def markdown_of(notebook: Path) -> str:
    """All markdown cells of a notebook, one after the other."""
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    return "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


def check_claims_and_deviations(document: Mapping[str, Any], notebook: Path) -> None:
    """Every claim leads to a section that exists and has a known test and a source; every
    deviation says all four things."""
    lines = markdown_of(notebook).splitlines()
    headings = {line.lstrip("# ") for line in lines if line.startswith("#")}
    for claim in document["claims"]:
        assert claim["shown"] in headings, claim["key"]
        assert claim["test"] in TESTS and claim["source"], claim["key"]
    parts = {"paper", "code", "here", "effect"}
    assert all(set(entry) == parts for entry in document["deviations"])
