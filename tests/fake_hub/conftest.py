"""One hub for all tests of this folder, and processes that find it where they look for a hub."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lib.runs.settings import ROOT
from tests.fake_hub import cut, data, models
from tests.fake_hub.server import TOKEN, FakeHub
from tests.processes import PATIENCE

NOBODY = "http://127.0.0.1:9"  # where no hub answers


@dataclass(frozen=True)
class Machine:
    """A computer that has seen nothing of the hub yet: its caches lie in `folder`."""

    folder: Path
    endpoint: str

    def python(
        self, *arguments: str, project: Path = ROOT, token: str = TOKEN, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Python with these arguments, in a project, with this machine's hub and caches."""
        unset = ("HF_HUB_OFFLINE", "STUDY_OFFLINE", "STUDY_MODELS", "STUDY_ASSETS")
        own = {name: value for name, value in os.environ.items() if name not in unset}
        paths = (str(project), os.environ.get("PYTHONPATH", ""))
        own |= {
            "HF_ENDPOINT": self.endpoint, "HF_HOME": str(self.folder / "hf"), "HF_TOKEN": token,
            "STUDY_CACHE": str(self.folder / "cache"), "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        }  # fmt: skip
        return subprocess.run(
            [sys.executable, *arguments],
            env=own | environment,
            cwd=project,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )


@pytest.fixture(scope="session")
def hub() -> Iterator[FakeHub]:
    """Every repository that the study names, as published."""
    with FakeHub(models.repositories(), data.repositories()) as served:
        yield served


@pytest.fixture(scope="session")
def machine(hub: FakeHub, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """A machine that keeps what the tests of a session fetched."""
    return Machine(tmp_path_factory.mktemp("machine"), hub.url)


@pytest.fixture(scope="session")
def small_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with a paper profile of a few edits."""
    return cut.copied(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with what is not on the hub."""
    return data.write_files(tmp_path_factory.mktemp("files"))
