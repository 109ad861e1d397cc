"""`--check` names what a new machine lacks, each with what mends it, and is satisfied by it."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from lib.runs.settings import papers, profile_of
from tests.fake_hub import data, models
from tests.fake_hub.conftest import NOBODY, Machine
from tests.fake_hub.server import FakeHub

CHECK = ("-m", "lib", "--profile", "paper", "--check")


def states(text: str) -> dict[str, str]:
    """What is in each row of the table: "melo zsre-t5" -> "MISSING"."""
    rows = re.findall(r"^(ok|left out|not asked|MISSING) +(\S+ \S+)", text, re.MULTILINE)
    return {what: state for state, what in rows}


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, FakeHub]]:
    """What a machine without anything is told, and the hub that was asked for it."""
    folder = tmp_path_factory.mktemp("new")
    with FakeHub(models.repositories(), data.repositories()) as hub:
        done = Machine(folder, hub.url).python(*CHECK, "--output", str(folder), token="")
        assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
        yield done.stdout, hub


def test_every_setting_and_backbone_has_a_row(asked: tuple[str, FakeHub]) -> None:
    found = states(asked[0])
    assert found["weights gpt-j-6b"] == found["weights gpt2"] == found["text wikipedia"] == "ok"
    assert found["weights llama-2-7b"] == "MISSING"
    assert found["malmen fever"] == found["melo zsre-t5"] == "MISSING"
    for paper in papers():
        for name, setting in profile_of(paper, "paper")[0]["settings"].items():
            assert (f"{paper} {name}" in found) == setting.get("enabled", True)


def test_what_is_missing_comes_with_its_remedy(asked: tuple[str, FakeHub]) -> None:
    text, hub = asked
    told = text.partition("To mend")[2]
    assert re.search(r"curl -L .* DIR/zsre/zsre_mend_eval\.json https://", told)
    assert re.search(r"put fever-train-kilt\.jsonl into DIR/fever/ \(linked from https://", told)
    assert f"accept its terms at {hub.url}/meta-llama/Llama-2-7b-hf" in told
    assert "gives only 60 records with a subject" in text


def test_no_weights_are_fetched(asked: tuple[str, FakeHub]) -> None:
    fetched = [one for one in asked[1].asked if re.search(r"/resolve/.*\.(bin|safetensors)$", one)]
    assert any("/resolve/" in one for one in asked[1].asked) and not fetched


def test_nothing_is_missing_once_all_is_there(
    machine: Machine, small_project: Path, files: Path, tmp_path: Path
) -> None:
    given = ("--data-dir", str(files), "--output", str(tmp_path))
    done = machine.python(*CHECK, *given, project=small_project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing is missing" in done.stdout
    assert set(states(done.stdout).values()) == {"ok"}


def test_without_a_network_it_says_so(tmp_path: Path) -> None:
    done = Machine(tmp_path, NOBODY).python(*CHECK, "--only", "melo", "--output", str(tmp_path))
    found = states(done.stdout)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert found["weights gpt2-xl-grace"] == found["melo scotus"] == "not asked"
    assert "could not ask the hub about tomh/scotus-bert" in done.stdout


def test_a_missing_fever_folder_stops_its_setting_alone(
    machine: Machine, small_project: Path, files: Path, tmp_path: Path
) -> None:
    for folder in files.iterdir():
        if folder.name != "fever":
            (tmp_path / folder.name).symlink_to(folder)
    given = ("--only", "malmen", "--data-dir", str(tmp_path), "--output", str(tmp_path / "out"))
    done = machine.python(*CHECK, *given, project=small_project)
    missing = {what for what, state in states(done.stdout).items() if state != "ok"}
    assert missing == {"malmen fever"}
