"""The API reference: it builds, and names everything public."""

import importlib
import inspect
import re
import sys
from pathlib import Path

import pytest

from lib.__main__ import main
from lib.errors import UsageError
from lib.report.pages import reference


def public(name: str) -> list[str]:
    """The functions and classes that a module defines, and what else it offers by name."""
    module = importlib.import_module(name)
    found = [
        key
        for key, item in vars(module).items()
        if not key.startswith("_")
        and (inspect.isfunction(item) or inspect.isclass(item))
        and item.__module__ == name
    ]
    return [*found, *getattr(module, "__all__", ())]


def test_without_pdoc_it_says_what_to_do(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pdoc.render", None)
    with pytest.raises(UsageError, match="pip install pdoc"):
        reference.write(tmp_path / "api")
    assert main(["api", str(tmp_path / "api")]) == 2 and not any(tmp_path.iterdir())


def test_every_public_name_has_its_place(tmp_path: Path) -> None:
    pytest.importorskip("pdoc")
    (tmp_path / "api").mkdir()
    (tmp_path / "api" / "old.html").touch()
    first = reference.write(tmp_path / "api")
    found, _ = reference.modules()
    assert len(found) > 100 and not (tmp_path / "api" / "old.html").exists()
    for name in found:
        text = (tmp_path / "api" / f"{name.replace('.', '/')}.html").read_text("utf-8")
        anchors = set(re.findall(r'id="([^"]+)"', text))
        assert set(public(name)) <= anchors, name
        assert "<style>" not in text and 'src="http' not in text
    assert "Edit facts in a model" in first.read_text("utf-8")
    assert {path.name for path in tmp_path.iterdir()} == {"api"}
