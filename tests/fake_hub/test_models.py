"""Every backbone of the catalogue loads from a repository as published, or says what to do."""

import dataclasses
import json
import shlex
from pathlib import Path

import pytest

from lib.backbones.sources.catalogue import ENTRIES, Hub
from tests.fake_hub import models
from tests.fake_hub.conftest import NOBODY, Machine
from tests.fake_hub.server import FakeHub

NAMES = [name for name, entry in ENTRIES.items() if isinstance(entry.sources[0], Hub)]
LOAD = """
import json, sys
from lib.backbones.sources import loading
from lib.errors import BackboneError
for name in sys.argv[1:]:
    try:
        found = loading.load(name)
        said = [found.provenance, found.content, found.tokenizer("a harbour")["input_ids"]]
    except BackboneError as error:
        said = str(error)
    print(json.dumps([name, said]))
"""


def loaded(machine: Machine, *names: str, **environment: str) -> dict[str, list | str]:
    """By name: provenance, content and the ids of a text; or the error."""
    done = machine.python("-c", LOAD, *names, **environment)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(line) for line in done.stdout.splitlines())


@pytest.fixture(scope="module")
def found(machine: Machine) -> dict[str, list | str]:
    return loaded(machine, *NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_it_loads_and_its_provenance_is_the_commit(found, hub: FakeHub, name: str) -> None:
    provenance, _, ids = found[name]
    source = ENTRIES[name].sources[0]
    repository = hub.repositories["models"][source.repository]
    revision = f"refs/pr/{models.PULL}" if repository.pulls else source.revision
    commit, _ = repository.at(source.repository, revision)
    assert provenance == f"model hub, {source.repository}@{commit}"
    assert len(ids) > 1


def test_only_the_converters_pull_request_is_read_and_nothing_is_sent(found, hub) -> None:
    assert "google/t5-small-ssm-nq" in models.PINNED
    assert any("/discussions" in asked for asked in hub.asked)
    assert not [asked for asked in hub.asked if "refs/pr/1/" in asked or models.PICKLED in asked]
    sent = [asked for asked in hub.asked if not asked.startswith(("GET", "HEAD"))]
    assert all("/paths-info/" in asked for asked in sent)


def test_what_was_fetched_loads_without_a_hub(found, machine: Machine) -> None:
    """With the hub switched off, and where it does not answer."""
    assert loaded(machine, *NAMES, HF_HUB_OFFLINE="1") == found
    kept = ("gpt2", "t5-small-ssm-nq", "llama-2-7b")
    assert loaded(machine, *kept, HF_ENDPOINT=NOBODY) == {name: found[name] for name in kept}


def test_a_gated_repository_names_page_and_token(hub: FakeHub, tmp_path: Path) -> None:
    said = loaded(Machine(tmp_path, hub.url), "llama-2-7b", HF_TOKEN="")["llama-2-7b"]
    assert f"accept its terms at {hub.url}/meta-llama/Llama-2-7b-hf" in said and "HF_TOKEN" in said


@pytest.mark.parametrize("name", ["t5-small-ssm-nq", "gpt2-xl-grace", "scotus-bert"])
def test_pickled_weights_alone_come_with_a_command_that_converts_them(
    found, tmp_path: Path, name: str
) -> None:
    """And the backbone that it makes is that of the converter's pull request."""
    repositories = {
        repository: dataclasses.replace(held, pulls={1: "somebody"})
        for repository, held in models.repositories().items()
    }
    with FakeHub(repositories, {}) as hub:
        machine = Machine(tmp_path / "machine", hub.url)
        said = loaded(machine, name)[name]
        assert "only pytorch_model.bin" in said
        command, _, rest = said[said.index(".venv/bin/python") :].partition(" && export ")
        program = shlex.split(command)[2]
        assert rest.startswith("STUDY_MODELS=$PWD/models")
        done = machine.python("-c", f"import os; os.chdir({str(tmp_path)!r}); {program}")
        assert done.returncode == 0, done.stderr
        converted = loaded(machine, name, STUDY_MODELS=str(tmp_path / "models"))[name]
    assert converted[1:] == found[name][1:]
