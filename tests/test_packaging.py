"""The wheel: the library alone, under a name of its own, outside the checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.processes import PATIENCE

pytest.importorskip("setuptools", reason="wheels are built with setuptools")
from setup import NAME, renamed

ROOT = Path(__file__).parents[1]
USE = """
import sys
import model_editing_study as lib
assert "torch" not in sys.modules, "importing the library must stay quick"
facts = [lib.Edit("The lamp of {} is kept by", "Odo", subject="Skerry")]
with lib.edit("tiny-llama", "MEMIT", facts, text="invented") as edited:
    print(edited.generate("The lamp of Skerry is kept by", 3), edited.save("kept"))
lib.open("kept").close()
assert "lib" not in sys.modules and "papers" not in sys.modules
"""


@pytest.mark.parametrize(
    "line",
    ["from NAME import x", "    import NAME.data", 'x = ("NAME.data", "NAME")', "f'NAME.{x}'"],
)
def test_names_of_modules_are_written_anew(line: str) -> None:
    assert renamed(line.replace("NAME", "lib")) == line.replace("NAME", NAME)


@pytest.mark.parametrize("line", ["import library", 'x = "lib/data"', '"calib.x"', "lib_x = lib.y"])
def test_nothing_else_is(line: str) -> None:
    assert renamed(line) == line


def test_a_wheel_works_outside_the_checkout(tmp_path: Path) -> None:
    copy, away = tmp_path / "copy", tmp_path / "away"
    away.mkdir()
    shutil.copytree(ROOT / "lib", copy / "lib", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy2(ROOT / name, copy)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index",
               "--no-build-isolation", "--wheel-dir", str(tmp_path), str(copy)]  # fmt: skip
    subprocess.run(command, check=True, timeout=PATIENCE, cwd=away)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
        file.extractall(tmp_path / "site")
    assert {name.split("/")[0].split("-")[0] for name in names} == {NAME}
    beside = [path for path in (ROOT / "lib").rglob("*") if path.is_file()]
    packed = {str(path.relative_to(ROOT / "lib")) for path in beside if path.suffix != ".pyc"}
    assert packed | {"py.typed"} == {
        name.removeprefix(f"{NAME}/") for name in names if name.startswith(f"{NAME}/")
    }
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "OMP_NUM_THREADS": "1",
                   "STUDY_CACHE": str(tmp_path / "cache")}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", USE], cwd=away, env=environment, capture_output=True, text=True,
        timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert (away / "kept" / "edits.json").is_file()
