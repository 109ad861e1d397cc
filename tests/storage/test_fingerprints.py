"""A stored result belongs to sources and to the data files that they name, and to no others."""

from pathlib import Path

import pytest

import lib
from lib.storage import fingerprints


def code(*modules: str, apart: tuple[str, ...] = ()) -> str:
    """As another process would find it."""
    fingerprints._parts.cache_clear()
    return fingerprints.code.__wrapped__(*modules, apart=apart)


@pytest.fixture
def project(tmp_path: Path, monkeypatch) -> Path:
    """A folder whose modules belong to the project."""
    monkeypatch.setattr(lib, "__path__", [*lib.__path__, str(tmp_path)])
    return tmp_path


@pytest.mark.parametrize("name", ["relations.yaml", "pinned.json"])
def test_embedded_data_hang_on_wordings_and_pins(monkeypatch, name: str) -> None:
    before, read = code("lib.data.datasets"), Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda file: read(file) + b"\n" * (file.name == name))
    assert code("lib.data.datasets") != before


@pytest.mark.parametrize("name", ["relations.py", "triples.py"])
def test_embedded_data_hang_on_the_code_that_makes_them(monkeypatch, name: str) -> None:
    before, read = code("lib.data.datasets"), Path.read_text
    monkeypatch.setattr(
        Path, "read_text", lambda file, *a: read(file, *a) + "\nMORE = 1\n" * (file.name == name)
    )
    assert code("lib.data.datasets") != before


SOURCE = '''"""Words."""


class Ferry:
    """Sails."""

    def price(self):
        """Coins."""
        return 3
'''
SAID = {
    "a comment": SOURCE + "# more to say\n",
    "a docstring of the module": SOURCE.replace("Words.", "Other words."),
    "a docstring of a class": SOURCE.replace("Sails.", "Sails daily."),
    "a docstring of a method": SOURCE.replace("Coins.", "In coins."),
    "no docstring": SOURCE.replace('        """Coins."""\n', ""),
    "layout": SOURCE.replace("return 3", "return (\n            3\n        )"),
}
DONE = {
    "a constant": SOURCE.replace("3", "4"),
    "a name": SOURCE.replace("price", "fare"),
    "a statement": SOURCE + "FREE = True\n",
}


@pytest.mark.parametrize("change", [*SAID, *DONE])
def test_what_code_says_of_itself_decides_nothing(project: Path, change: str) -> None:
    module = project / "named_ferry.py"
    module.write_text(SOURCE)
    before = code("lib.named_ferry")
    module.write_text((SAID | DONE)[change])
    assert (code("lib.named_ferry") == before) == (change in SAID)


def test_modules_apart_and_what_they_alone_import_do_not_count(project: Path) -> None:
    (project / "named_port.py").write_text("SIZE = 1\n")
    (project / "named_trade.py").write_text("from lib import named_port\n")
    (project / "named_town.py").write_text("from lib import named_trade\n")
    both = ("lib.named_town",), ("lib.named_trade",)
    whole, alone = code(*both[0]), code(*both[0], apart=both[1])
    (project / "named_port.py").write_text("SIZE = 2\n")
    assert code(*both[0]) != whole
    assert code(*both[0], apart=both[1]) == alone


def test_a_data_file_counts_where_a_module_names_it(project: Path) -> None:
    (project / "named_words.py").write_text('FILE = "words.txt"\nFOLDER = "more"\n')
    (project / "named_user.py").write_text("from lib import named_words\n")
    (project / "more").mkdir()
    for name in ("words.txt", "other.txt"):
        (project / name).write_text("one")
    before = code("lib.named_user")
    (project / "other.txt").write_text("two")
    assert code("lib.named_user") == before
    (project / "words.txt").write_text("two")
    assert code("lib.named_user") != before
