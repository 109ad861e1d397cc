"""One table of a report, by its name: does the runs that it is made of, and no others."""

import importlib
from pathlib import Path

import pandas as pd

from lib.errors import StudyError, UsageError
from lib.report import tables
from lib.runs.settings import FOLDER
from lib.runs.study import Study

SHOWN = ("setting", "editor", "metric", "reported", "reproduced", "ci_low", "ci_high", "n", "error")


def known(study: Study) -> dict[str, tables.Regenerated]:
    """The tables of the study's paper by name."""
    for path in sorted((FOLDER / study.paper).glob("[!_]*.py")):
        importlib.import_module(f"papers.{study.paper}.{path.stem}")
    return {name: one for (paper, name), one in tables.NAMED.items() if paper == study.paper}


def make(study: Study, asked: str) -> list[Path]:
    """Make the table `asked`, do what it lacks, print it; returns the CSV files it wrote.

    `asked`: a table's name, for all its settings, or with one of them behind. Which runs it needs
    is found by making it: whatever it reads is done, until it reads nothing new.
    Raises UsageError if there is no such table, StudyError if a run of it failed.
    """
    named, made = known(study), {}
    study.asked.clear()
    for name, one in named.items():
        if name == asked or asked.startswith(f"{name}-"):
            made |= _made(study, one, asked)
    failed = study.errors(study.asked)
    if not made and not failed:
        raise UsageError(
            f"{study.paper} has no table {asked!r} in the profile {study.profile}; there are "
            f"{', '.join(sorted(named))}, and most with a setting behind: "
            f"{', '.join(study.settings)}"
        )
    for name, table in made.items():
        print(f"{study.paper}, {name}", _text(table), "", sep="\n")
    if failed:
        title, text = next(iter(failed.items()))
        raise StudyError(f"{title}: {text.strip().splitlines()[-1]}")
    return [study.folder / "tables" / f"{study.paper}-{name}.csv" for name in made]


def _made(study: Study, one: tables.Regenerated, asked: str) -> dict[str, object]:
    """The tables of one maker that are meant, after the runs that they read."""
    done: set[tuple[str, str]] = set()
    while True:
        found = {
            name: one.make(study, *arguments)
            for name, arguments in one.places(study).items()
            if asked in (one.name, name)
        }
        if done == study.asked or not study.to_do(study.asked):
            return {name: table for name, table in found.items() if table is not None}
        done = set(study.asked)
        study.run_missing(quiet=True, prefix=f"{study.paper}: ", of=done)


def _text(table: object) -> str:
    frame = table if isinstance(table, pd.DataFrame) else table.tidy[list(SHOWN)]
    return frame.dropna(axis="columns", how="all").to_string(index=False)
