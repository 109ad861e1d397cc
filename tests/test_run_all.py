"""`run_all.sh`: where it may be called from, and that its environment is whole, once, or not there.

A program of the test stands in for python3.11: nothing is installed, and it stops where it is told.
"""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import PATIENCE

ROOT = Path(__file__).parents[1]
TOOLS = ("bash", "env", "dirname", "readlink", "cat", "cp", "mkdir", "rm")  # macOS has all of them
# What makes an environment says so in the log. Installing waits until it may go on.
PYTHON = r"""#!/bin/bash
case "$*" in
  "-m venv --clear .venv") echo "made by $ME" >> "$LOG"; rm -rf .venv; mkdir -p .venv/bin
    cp "$0" .venv/bin/python;;
  "-m pip install"*) echo "$ME installs" >> "$LOG"; [ -z "$GATE" ] || read -r _ < "$GATE"
    [ -z "$PIP_FAILS" ] || exit 7
    echo "$ME installed" >> "$LOG";;
  "-m lib"*|"-m pytest"*) echo "$ME starts in $PWD: $*" >> "$LOG"; echo "$PYTHONPATH";;
  "-c import fcntl"*) exec REAL "$@";;
esac
"""


class Project:
    """A folder with `run_all.sh` and one requirement, called with a path of a few tools only."""

    def __init__(self, root: Path, flock: bool) -> None:
        self.folder, self.log, self.gate = root / "pro ject", root / "log", root / "gate"
        tools = root / "tools"
        for folder in (self.folder, tools):
            folder.mkdir()
        shutil.copy2(ROOT / "run_all.sh", self.folder)
        (self.folder / "requirements.txt").write_text("one==1\n")
        for name in (*TOOLS, *["flock"] * flock):
            (tools / name).symlink_to(shutil.which(name))
        (tools / "python3.11").write_text(PYTHON.replace("REAL", sys.executable))
        (tools / "python3.11").chmod(0o755)
        os.mkfifo(self.gate)
        self.log.touch()
        self.environment = {"PATH": str(tools), "LOG": str(self.log), "HOME": str(root)}

    def start(self, who: str, *arguments: str, **more: str) -> subprocess.Popen:
        """A call that goes on beside the test, in a process group of its own."""
        return subprocess.Popen(
            ["./run_all.sh", *arguments], cwd=self.folder, stderr=subprocess.PIPE, text=True,
            env=self.environment | {"ME": who} | more, start_new_session=True,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip

    def call(self, *command: str, cwd: Path | None = None, **more: str) -> str:
        """Standard output of a finished call, which must end well."""
        done = subprocess.run(
            command, cwd=cwd or self.folder, env=self.environment | {"ME": "call"} | more,
            capture_output=True, text=True, timeout=PATIENCE,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines()

    def let_go(self) -> None:
        """Wait for the one that installs, and let it go on."""
        self.gate.write_text("go\n")


@pytest.fixture(params=[True, False], ids=["flock", "no flock"])
def project(request: pytest.FixtureRequest, tmp_path: Path) -> Project:
    if request.param and not shutil.which("flock"):
        pytest.skip("no flock here")
    return Project(tmp_path, request.param)


def test_it_is_made_once_and_again_for_other_requirements(project: Project) -> None:
    assert project.call("./run_all.sh", "--plan") == f"{project.folder}\n"
    start = f"call starts in {project.folder}: -m lib --plan"
    assert project.lines() == ["made by call", "call installs", "call installed", start]
    project.call("./run_all.sh", "--plan")
    assert project.lines()[4:] == [start]
    (project.folder / "requirements.txt").write_text("one==2\n")
    project.call("./run_all.sh", "--plan")
    assert project.lines()[5:] == project.lines()[:4]


def test_the_caller_stays_where_he_is_and_links_lead_to_the_project(
    project: Project, tmp_path: Path
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "else where" / "pro ject").mkdir(parents=True)
    (tmp_path / "bin" / "study").symlink_to("../second")
    (tmp_path / "second").symlink_to(project.folder / "run_all.sh")
    elsewhere = tmp_path / "else where"
    calls = ("../bin/study", str(tmp_path / "second"), "../pro ject/run_all.sh")
    for call in calls:  # a search path of `cd` must not lead into the folder of the same name
        shown = project.call(call, "--output", "out", cwd=elsewhere, CDPATH=str(elsewhere))
        assert shown == f"{project.folder}\n"
        assert project.lines()[-1] == f"call starts in {elsewhere}: -m lib --output out"
    shown = project.call("bash", "pro ject/run_all.sh", cwd=tmp_path, CDPATH=str(elsewhere))
    assert shown == f"{project.folder}\n"
    project.call(calls[0], "--test", "-x", cwd=elsewhere)
    assert project.lines()[-1].startswith(f"call starts in {project.folder}: -m pytest")
    assert sum(line.startswith("made") for line in project.lines()) == 1


def test_a_second_call_waits_for_the_environment_of_the_first(project: Project) -> None:
    first = project.start("first", GATE=str(project.gate))
    assert "making .venv" in first.stderr.readline()
    while "first installs" not in project.lines():
        assert first.poll() is None
    second = project.start("second")
    assert "waiting" in second.stderr.readline()
    project.let_go()
    assert [process.wait(PATIENCE) for process in (first, second)] == [0, 0]
    told = project.lines()
    assert told[:3] == ["made by first", "first installs", "first installed"]
    assert {line.split(":")[0] for line in told[3:]} == {
        f"{who} starts in {project.folder}" for who in ("first", "second")
    }


@pytest.mark.parametrize("end", ["killed", "failed"])
def test_half_an_environment_is_made_again(project: Project, end: str) -> None:
    """A kill takes the lock away; a call that is waiting then goes on."""
    first = project.start(
        "first", GATE=str(project.gate), PIP_FAILS="yes" if end == "failed" else ""
    )
    while "first installs" not in project.lines():
        assert first.poll() is None
    second = project.start("second")
    assert "waiting" in second.stderr.readline()
    if end == "killed":
        os.killpg(first.pid, signal.SIGKILL)
    else:
        project.let_go()
    assert first.wait(PATIENCE) == (-signal.SIGKILL if end == "killed" else 7)
    assert second.wait(PATIENCE) == 0
    assert project.lines() == [
        "made by first", "first installs", "made by second", "second installs", "second installed",
        f"second starts in {project.folder}: -m lib",
    ]  # fmt: skip


def test_without_a_fitting_python_it_says_so(project: Project, tmp_path: Path) -> None:
    (tmp_path / "tools" / "python3.11").write_text("#!/bin/bash\nexit 1\n")
    done = project.start("nobody")
    told = done.communicate(timeout=PATIENCE)[1]
    assert done.returncode == 1 and "needs Python 3.11 or 3.12" in told
    assert not (project.folder / ".venv").exists()


def test_a_copied_project_uses_its_own_library(tmp_path: Path) -> None:
    """With a real environment in which `pip` does nothing: notebooks import by it alone."""
    project = Project(tmp_path, flock=False)
    (project.folder / "lib").mkdir()
    (project.folder / "lib" / "__init__.py").touch()
    (project.folder / "lib" / "__main__.py").write_text("print(__file__)")
    make = (
        f'[ "$2" = venv ] || exec {sys.executable} "$@"\n'
        f'{sys.executable} -m venv --without-pip "$3" "$4"\n'
        "for site in .venv/lib/python3.*/site-packages; do mkdir $site/pip; done\n"
        'for file in __init__ __main__; do echo > "$site/pip/$file.py"; done\n'
    )
    (tmp_path / "tools" / "python3.11").write_text(f"#!/bin/bash\n{make}")
    project.call("./run_all.sh")
    copy = tmp_path / "deeper" / "copy"
    shutil.copytree(project.folder, copy, symlinks=True)
    (copy / "notebooks").mkdir()
    asked = "import sys; sys.path.remove(''); import lib; print(lib.__file__)"
    for _ in ("beside the first", "without it"):
        shown = project.call("../.venv/bin/python", "-c", asked, cwd=copy / "notebooks")
        assert shown == f"{copy / 'lib' / '__init__.py'}\n"
        shutil.rmtree(project.folder, ignore_errors=True)
    other = tmp_path / "other"
    shutil.copytree(copy / "lib", other / "lib")  # where the caller is
    assert project.call("../deeper/copy/run_all.sh", cwd=other) == f"{copy / 'lib/__main__.py'}\n"
