"""One table by its name: the runs that it reads, and no others."""

from pathlib import Path

import pandas as pd
import pytest

from lib.errors import StudyError, UsageError
from lib.report import tables
from lib.report.pages import one_table
from lib.runs.settings import papers
from lib.runs.study import Study


class Asked:
    """A study of three settings whose runs are rows of a store."""

    paper, profile, settings = "demo", "smoke", ["a", "b", "c"]

    def __init__(self, folder: Path, broken: tuple[str, ...] = ()) -> None:
        self.folder, self.broken = folder, broken
        self.asked, self.done = set(), []

    def records(self, setting: str, sweep: str = "") -> pd.DataFrame:
        self.asked.add((setting, sweep))
        return pd.DataFrame({"x": [1.0] if (setting, sweep) in self.done else []})

    def to_do(self, of: set[tuple[str, str]]) -> list[tuple[str, str]]:
        return sorted(set(of) - set(self.done))

    def run_missing(self, *, quiet: bool, prefix: str, of: set[tuple[str, str]]) -> bool:
        self.done += [key for key in self.to_do(of) if key[0] not in self.broken]
        return not self.to_do(of)

    def errors(self, of: set[tuple[str, str]]) -> dict[str, str]:
        return {f"x on {key[0]}": "Traceback\nEditorError: no" for key in self.to_do(of)}


def swept(study: Asked, setting: str) -> pd.DataFrame | None:
    """Reads the sweep only once the main table is there."""
    main = study.records(setting)
    return study.records(setting, "radius") if len(main) else None


@pytest.fixture
def named(monkeypatch) -> None:
    one = tables.Regenerated("demo", "swept", swept, lambda study: ["a", "b"], None)
    monkeypatch.setattr(tables, "NAMED", {("demo", "swept"): one})


def test_what_a_table_reads_is_done_and_nothing_else(tmp_path: Path, named, capsys) -> None:
    study = Asked(tmp_path)
    assert one_table.make(study, "swept-a") == [tmp_path / "tables" / "demo-swept-a.csv"]
    assert study.done == [("a", ""), ("a", "radius")]
    assert "demo, swept-a" in capsys.readouterr().out
    assert len(one_table.make(study, "swept")) == 2
    assert ("b", "radius") in study.done and not any(key[0] == "c" for key in study.done)


def test_a_failed_run_ends_it_with_its_error(tmp_path: Path, named) -> None:
    with pytest.raises(StudyError, match="x on a: EditorError: no"):
        one_table.make(Asked(tmp_path, broken=("a",)), "swept-a")


def test_an_unknown_table_names_those_there_are(tmp_path: Path, named) -> None:
    for wrong in ("swep", "swept-c", "other"):
        with pytest.raises(UsageError, match=f"no table '{wrong}'.*swept.*a, b, c"):
            one_table.make(Asked(tmp_path), wrong)


@pytest.mark.parametrize("paper", papers())
def test_every_table_of_a_paper_can_be_made_before_any_run(paper: str, tmp_path: Path) -> None:
    study = Study.open(paper, "smoke", output=tmp_path)
    known = one_table.known(study)
    assert known
    for name, one in known.items():
        for place, arguments in one.places(study).items():
            assert place.startswith(name)
            made = one.make(study, *arguments)
            assert made is None or isinstance(made, tables.Table | pd.DataFrame)
