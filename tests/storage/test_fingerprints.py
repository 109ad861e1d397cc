"""A stored result belongs to sources and to the data files that they name, and to no others."""

from pathlib import Path

import pytest

import lib
from lib.storage import fingerprints

code = fingerprints.code.__wrapped__  # as another process would find it


@pytest.mark.parametrize("name", ["relations.yaml", "pinned.json", "relations.py", "triples.py"])
def test_embedded_data_hang_on_wordings_and_pins(monkeypatch, name: str) -> None:
    before, read = code("lib.data.datasets"), Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda file: read(file) + b"\n" * (file.name == name))
    assert code("lib.data.datasets") != before


def test_a_data_file_counts_where_a_module_names_it(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(lib, "__path__", [*lib.__path__, str(tmp_path)])
    (tmp_path / "named_words.py").write_text('FILE = "words.txt"\nFOLDER = "more"\n')
    (tmp_path / "named_user.py").write_text("from lib import named_words\n")
    (tmp_path / "more").mkdir()
    for name in ("words.txt", "other.txt"):
        (tmp_path / name).write_text("one")
    before = code("lib.named_user")
    (tmp_path / "other.txt").write_text("two")
    assert code("lib.named_user") == before
    (tmp_path / "words.txt").write_text("two")
    assert code("lib.named_user") != before
