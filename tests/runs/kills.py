"""Kills the study at random moments, calls it again, and compares the end with an unbroken study.

    python -m tests.runs.kills --kills 100    # all five reports; `test_study.py` has a short form

Each call (smoke profile, a checkpoint after every batch) is a process group of its own. SIGKILL
hits it at a random moment after a report has begun, and the next call goes on from what it left; a
call that ends before its moment is compared, and the next one begins from nothing, with an empty
cache. Moments come from --seed; what is under way then depends on the machine's speed, too.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd

from lib.runs import plan
from lib.runs.store import TABLES, Store

ROOT = Path(__file__).resolve().parents[2]
# Columns, and rows of tables, that say how long or how much memory something took.
MEASURED = re.compile(
    r"second|time|overhead|slow|fast|memory|GiB|MiB|joint_bytes|decoupled_bytes|peak|cached|longer"
    r"|percent more|[0-9] m?s\b",
    re.I,
)
BOUNDS = ("low", "high")


class Calls:
    """A study that is called again and again in one folder."""

    def __init__(self, root: Path, flags: list[str]) -> None:
        self.root, self.flags = root, flags

    @property
    def folder(self) -> Path:
        """Where its results are."""
        return self.root / "out" / "smoke"

    def clear(self) -> None:
        """Back to nothing: no results, an empty cache."""
        if self.root.exists():
            shutil.rmtree(self.root)
        self.root.mkdir(parents=True)

    def call(self, after: float | None = None) -> bool:
        """One call, killed `after` seconds from the beginning of its first report (None: never);
        whether it ended."""
        command = [sys.executable, "-m", "lib", "--profile", "smoke", *self.flags]
        environment = os.environ | {
            "PYTHONPATH": str(ROOT), "STUDY_CACHE": str(self.root / "cache"),
            "STUDY_OFFLINE": "1", "STUDY_CHECKPOINT_SECONDS": "0",
        }  # fmt: skip
        log = self.root / "said"
        with log.open("w", encoding="utf-8") as said:
            process = subprocess.Popen(
                [*command, "--output", str(self.root / "out")], cwd=self.root, env=environment,
                stdout=said, stderr=said, start_new_session=True,
            )  # fmt: skip
            try:
                while " to do" not in log.read_text("utf-8") and process.poll() is None:
                    time.sleep(0.02)
                process.wait(after)
            except subprocess.TimeoutExpired:
                pass
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
        if process.wait() == -signal.SIGKILL:
            return False
        if process.returncode:
            raise SystemExit(f"a call failed with {process.returncode}:\n{log.read_text('utf-8')}")
        return True

    def under_way(self, since: float) -> tuple[list[str], list[str]]:
        """Runs and papers' pages on which the call that began at `since` was killed."""
        runs = [
            folder.name[1:].removesuffix(".work")
            for folder in self.folder.glob("runs/.*.work")
            if any(file.stat().st_mtime >= since for file in folder.rglob("*"))
        ]
        pages = [
            notebook.stem
            for notebook in self.folder.glob("*.ipynb")
            if notebook.stat().st_mtime >= since
            and not _newer(notebook.with_suffix(".html"), notebook)
        ]
        return runs, pages


def endings(
    calls: Calls, kills: int, moment: Callable[[], float], tell: Callable[[float, float], None]
) -> Iterator[None]:
    """Call until `kills` calls were killed, each `moment()` seconds after its beginning, and the
    study has ended then. Yields whenever it has ended; each time it begins from nothing.
    `tell(since, after)`: a call that began at `since` was killed."""
    killed = 0
    calls.clear()
    while True:
        since, after = time.time(), moment() if killed < kills else None
        if not calls.call(after):
            killed += 1
            tell(since, after)
            continue
        yield
        if killed == kills:
            return
        calls.clear()


def _newer(file: Path, other: Path) -> bool:
    return file.exists() and file.stat().st_mtime >= other.stat().st_mtime


def titles(folder: Path) -> dict[str, str]:
    """Run to title for every finished run: "MELO on zsre-t5, seed 0"."""
    return {
        path.parent.name: json.loads(path.read_text("utf-8"))["title"]
        for path in _manifests(folder)
    }


def _manifests(folder: Path, paper: str = "") -> list[Path]:
    """The manifests of finished runs, of a paper's page alone if it is named."""
    found = sorted(folder.glob("runs/[!.]*/manifest.json"))
    planned = plan.runs(paper, "smoke", device="cpu") if paper else []
    own = {Store(folder).told(run).identity for run in planned}
    return [path for path in found if not paper or path.parent.name in own]


def differences(whole: Path, broken: Path, paper: str = "") -> list[str]:
    """What differs between two finished outputs ("": all papers), times and memory excepted."""
    found = []
    names = [{path.parent.name for path in _manifests(folder, paper)} for folder in (whole, broken)]
    found += [f"run {name} is not in both" for name in sorted(names[0] ^ names[1])]
    for name in sorted(names[0] & names[1]):
        for table in TABLES:
            files = [folder / "runs" / name / f"{table}.parquet" for folder in (whole, broken)]
            one, other = (_unmeasured(pd.read_parquet(file)) for file in files)
            if not one.equals(other):
                found.append(f"{table} of {titles(whole)[name]} ({name})")
    names = [
        {path.name for path in folder.glob(f"tables/{paper}*.csv")} for folder in (whole, broken)
    ]
    found += [f"tables/{name} is not in both" for name in sorted(names[0] ^ names[1])]
    for name in sorted(names[0] & names[1]):
        one, other = (_unmeasured(_cells(folder / "tables" / name)) for folder in (whole, broken))
        if not one.equals(other):
            found.append(f"tables/{name}")
    return found


def _unmeasured(frame: pd.DataFrame) -> pd.DataFrame:
    """Without measured columns, and without the interval's bounds that follow one."""
    kept, measured = [], False
    for name in frame:
        measured = bool(MEASURED.search(name)) or (measured and name in BOUNDS)
        kept += [] if measured else [name]
    return frame[kept]


def _cells(path: Path) -> pd.DataFrame:
    """A table as text, without rows that tell of a measurement."""
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    told = frame.apply(lambda row: bool(MEASURED.search(" ".join(row))), axis=1)
    return frame[~told.astype(bool)].reset_index(drop=True)


def main() -> int:
    """Exit status 0 if every study that was broken equals the unbroken one, else 1."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100, help="how many (100)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (0)")
    parser.add_argument("--only", metavar="PAPERS", help="as for run_all.sh; default: all")
    parser.add_argument("--output", type=Path, metavar="DIR", help="kept; default: a passing one")
    options = parser.parse_args()
    flags = ["--only", options.only] if options.only else []
    with tempfile.TemporaryDirectory() as passing:
        root = (options.output or Path(passing)).resolve()
        return _compare(root, flags, options.kills, random.Random(options.seed))


def _compare(root: Path, flags: list[str], kills: int, rng: random.Random) -> int:
    whole, broken = Calls(root / "unbroken", flags), Calls(root / "broken", flags)
    whole.clear()
    began = time.monotonic()
    whole.call()
    seconds, named = time.monotonic() - began, titles(whole.folder)
    print(f"unbroken: {len(named)} runs in {seconds:.0f} s", flush=True)
    editors = {
        run: f"{run.rpartition('-')[0]}: {told.split(' on ')[0]}" for run, told in named.items()
    }
    editing: Counter[str] = Counter()
    rendering: Counter[str] = Counter()

    def moment() -> float:
        """More often early, when runs go on, than late, when pages are made."""
        return rng.random() ** 2 * seconds / 4

    def tell(since: float, after: float) -> None:
        runs, pages = broken.under_way(since)
        editing.update(editors[run] for run in runs)
        rendering.update(pages)
        what = [*(named[run] for run in runs), *(f"page of {paper}" for paper in pages)]
        print(f"killed after {after:.1f} s: {'; '.join(what) or 'between runs'}", flush=True)

    found, ended = [], 0
    for ended, _ in enumerate(endings(broken, kills, moment, tell), 1):  # noqa: B007
        found += differences(whole.folder, broken.folder)
    print(f"killed {kills} times, ended {ended} times")
    for title, counts in (("while editing", editing), ("while its page was made", rendering)):
        print(f"{title}:", ", ".join(f"{name} {n}" for name, n in sorted(counts.items())) or "none")
    print("never while editing:", ", ".join(sorted(set(editors.values()) - set(editing))) or "none")
    print("different:", "; ".join(found) or "nothing, but times and memory")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
