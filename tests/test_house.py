"""The house stays what it is: few entries in every folder, no paper in the library."""

import re
from pathlib import Path

import pytest

from lib import editors
from lib.runs.settings import ROOT, papers, read_paper

LIBRARY = sorted(path for path in (ROOT / "lib").rglob("*.py"))
FOLDERS = sorted({path.parent for path in LIBRARY})


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_folder_holds_more_than_ten_entries(folder: Path) -> None:
    entries = [path.name for path in folder.iterdir() if not path.name.startswith("__")]
    assert len(entries) <= 10, f"which of {sorted(entries)} are chapters of one idea?"


def known_to_papers() -> set[str]:
    """Names that only papers may know: of themselves, their settings, their tables."""
    found = set(papers()) - set(editors.REGISTRY)  # methods bear the names of their papers
    for paper in papers():
        document = read_paper(paper)
        keys = set(document.get("tables", {}))
        for block in (document["common"], *document["profiles"].values()):
            keys |= set((block or {}).get("settings", {}))
        # A key that is one plain word ("facts", "zsre") means something in the library too.
        found |= {f"papers.{paper}", f"papers/{paper}", *(k for k in keys if not k.isalpha())}
    return found


KNOWN = known_to_papers()


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_library_knows_no_paper(path: Path) -> None:
    text = path.read_text("utf-8")
    assert not re.search(r"^\s*(?:from|import) papers\b", text, re.MULTILINE)
    quoted = set(re.findall(r"""["']([\w./-]+)["']""", text))
    assert not quoted & KNOWN
