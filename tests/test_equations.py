"""`docs/equations.md` names what there is."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "equations.md").read_text("utf-8")
ROWS = [line for line in TEXT.splitlines() if line.startswith("| ") and "`lib/" in line]


def defined(path: str) -> set[str]:
    """Functions, classes, and what classes define, by name: "f", "C", "C.method", "C.field"."""
    found = set()
    for node in ast.parse((ROOT / path).read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found.add(node.name)
            for part in node.body:
                if isinstance(part, ast.FunctionDef):
                    found.add(f"{node.name}.{part.name}")
                if isinstance(part, ast.AnnAssign):
                    found.add(f"{node.name}.{part.target.id}")
    return found


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip()[:30])
def test_every_file_and_name_exists(row: str) -> None:
    for place in row.rstrip("| ").rpartition(" | ")[2].split("; "):
        path, *names = re.findall(r"`([^`]+)`", place)
        assert (ROOT / path).is_file()
        assert {*names} <= defined(path), path


def test_every_table_is_read() -> None:
    lines = [line for line in TEXT.splitlines() if line.startswith("| ")]
    headings = [line for line in lines if line.startswith("| symbol")]
    assert len(headings) == TEXT.count("\n## ") and len(ROWS) == len(lines) - len(headings)
