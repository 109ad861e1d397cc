"""Builds the wheel: the library under a name of its own.

In the checkout the library is `lib`, as every import, notebook and test has it. Installed beside
other packages that name would clash with any other `lib`, so the wheel holds a copy called
`model_editing_study`, in which every name `lib` of a module is written anew. Papers, notebooks and
tests stay in the checkout: they are the study, not the library.
"""

import re
import sys
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

NAME = "model_editing_study"
# `lib` as a module: imported, quoted as the beginning of a dotted name, or alone in quotes.
MODULE = re.compile(
    r"(?P<import>^\s*(?:from|import)\s+)lib\b|(?P<quote>[\"'])lib(?=[.\"'])", re.MULTILINE
)


def renamed(text: str) -> str:
    """Source text with the library's modules under their installed name."""
    return MODULE.sub(lambda found: (found["import"] or found["quote"]) + NAME, text)


class BuildRenamed(build_py):
    """Copies `lib` as `model_editing_study`, with its data files and a `py.typed`."""

    def run(self) -> None:
        target = Path(self.build_lib) / NAME
        for source in sorted(Path("lib").rglob("*")):
            if not source.is_file() or "__pycache__" in source.parts:
                continue
            path = target / source.relative_to("lib")
            path.parent.mkdir(parents=True, exist_ok=True)
            if source.suffix in (".py", ".pyi"):
                path.write_text(renamed(source.read_text("utf-8")), "utf-8")
            else:
                path.write_bytes(source.read_bytes())
        (target / "py.typed").touch()


if __name__ == "__main__":
    if "editable_wheel" in sys.argv:  # pip install -e: the checkout itself, as conda's has it
        setup(packages=find_packages(include=["lib*", "papers*"]))
    else:
        setup(packages=[NAME], package_dir={NAME: "lib"}, cmdclass={"build_py": BuildRenamed})
