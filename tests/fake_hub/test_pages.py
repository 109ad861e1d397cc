"""All settings of all papers, with the paper's backbones and editors, from the hub to the page."""

from pathlib import Path

import pytest

from lib.runs.settings import papers
from tests.fake_hub.conftest import Machine


@pytest.mark.slow
@pytest.mark.parametrize("paper", papers())
def test_a_page_of_the_paper_profile(
    paper: str, machine: Machine, small_project: Path, files: Path
) -> None:
    output = machine.folder / "outputs"
    given = ("--profile", "paper", "--only", paper, "--data-dir", str(files))
    done = machine.python("-m", "lib", *given, "--output", str(output), project=small_project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failed" not in done.stderr
    page = (output / "paper" / f"{paper}.html").read_text("utf-8")
    assert "Traceback" not in page
