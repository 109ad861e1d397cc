"""How far scores lie apart when everything random besides the order is drawn a second time.

    python benchmarks/second_draw.py outputs/laptop ../second/outputs/laptop
    python benchmarks/second_draw.py outputs/laptop ../second/outputs/laptop --paper melo --rows 40

Both folders are outputs of one profile. The second is of a second draw: the same settings and
orders of edits, made where tuned backbones, trained networks, initial adapters and routers came out
otherwise (another seed of these, or another machine with empty caches). Prints, for every score,
the largest and the median absolute difference over all runs that both hold, then the single
differences, largest first, as tables in Markdown.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from lib.errors import StoreError
from lib.metrics.draws import between_draws
from lib.metrics.scales import WRITTEN

MOMENTS = ("end", "own")


def records(folder: Path, paper: str) -> pd.DataFrame:
    """The scored rows of all finished runs of a paper ("": of all) in an outputs folder; `what`
    names the run: paper, setting, editor, what is varied, and order seed."""
    found = list(_runs(folder / "runs", paper))
    if not found:
        raise StoreError(
            f"{folder}: no finished run{f' of {paper}' if paper else ''} below {folder / 'runs'}; "
            "give the folder of a profile, such as outputs/laptop"
        )
    return pd.concat(found, ignore_index=True)


def _runs(store: Path, paper: str) -> Iterator[pd.DataFrame]:
    for path in sorted(store.glob(f"{paper or '*'}-*/manifest.json")):
        try:
            title = json.loads(path.read_text("utf-8"))["title"]
            rows = pd.read_parquet(path.parent / "records.parquet")
        except (ValueError, KeyError, OSError) as error:
            raise StoreError(f"{path.parent}: {error}; delete the folder and run again") from error
        where = path.parent.name.rpartition("-")[0]
        yield rows.assign(what=f"{where}: {title}", editor=title.partition(" on ")[0])


def table(frame: pd.DataFrame, digits: int = 3) -> str:
    """A frame as a table in Markdown."""
    rows = [[f"{x:.{digits}f}" if isinstance(x, float) else str(x) for x in row]
            for row in frame.itertuples(index=False)]  # fmt: skip
    lines = [list(frame.columns), ["---"] * frame.shape[1], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main(arguments: list[str] | None = None) -> int:
    """Prints both tables; 2 if the folders have nothing in common."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("--paper", default="", help="one paper's runs; default: all")
    parser.add_argument("--rows", type=int, default=20, help="single differences to print")
    chosen = parser.parse_args(arguments)
    try:
        first, second = (records(folder, chosen.paper) for folder in (chosen.first, chosen.second))
    except StoreError as error:
        print(error, file=sys.stderr)
        return 2
    found = between_draws(first, second, list(WRITTEN), MOMENTS)
    if found.empty:
        print("the two folders have no run in common: give outputs of one profile", file=sys.stderr)
        return 2
    spread = found.groupby("score", sort=False)["difference"].agg(["median", "max", "size"])
    print(table(spread.reset_index().rename(columns={"size": "runs x subsets"})))
    print()
    widest = found.sort_values("difference", ascending=False, kind="stable").head(chosen.rows)
    print(table(widest.drop(columns="editor")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
