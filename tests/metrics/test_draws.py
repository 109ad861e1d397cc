"""Two draws of the same study: paired run by run and prompt by prompt, by hand and as a program."""

import json
from pathlib import Path

import pandas as pd
import pytest

from benchmarks import second_draw
from lib.metrics.draws import between_draws


def draw(right: list[float], editor: str = "MELO", **changes: object) -> pd.DataFrame:
    values = {
        "what": f"{editor} on s", "editor": editor, "subset": "edits", "moment": "end",
        "n_edits": 4, "record": [f"fact {i}" for i in range(len(right))], "prompt": "?",
        "edit_index": range(len(right)), "exact_match": right, "title": "no score",
    }  # fmt: skip
    return pd.DataFrame(values | changes)


def test_means_of_the_common_prompts_are_set_beside_each_other() -> None:
    first = pd.concat([draw([1, 1, 0, 0]), draw([1, 0], "GRACE"), draw([0, 0], moment="before")])
    second = pd.concat([draw([1, 1, 1]), draw([1, 0], "LoRA")])
    found = between_draws(first, second, ["exact_match", "nll"], ["end", "own"])
    assert len(found) == 1  # one run in common, and one moment that is read
    row = found.iloc[0]
    assert (row["editor"], row["score"], row["n"]) == ("MELO", "exact_match", 3)
    assert row["first"] == pytest.approx(2 / 3) and row["second"] == 1
    assert row["difference"] == pytest.approx(1 / 3)


def test_the_last_of_several_sizes_counts_and_nothing_in_common_is_an_empty_frame() -> None:
    first = pd.concat([draw([0, 0], n_edits=2), draw([1, 1])])
    found = between_draws(first, draw([1, 0]), ["exact_match"], ["end"])
    assert found["first"].tolist() == [1.0] and found["difference"].tolist() == [0.5]
    assert between_draws(first, draw([1], "FT"), ["exact_match"], ["end"]).empty
    assert between_draws(first, first, ["unknown"], ["end"]).empty


def test_the_program_reads_two_stores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, right in (("a", [1.0, 1.0, 0.0, 0.0]), ("b", [1.0, 0.0, 0.0, 0.0])):
        for paper in ("melo", "elder"):
            folder = tmp_path / name / "runs" / f"{paper}-s-{name}0123"  # another identity
            folder.mkdir(parents=True)
            (folder / "manifest.json").write_text(json.dumps({"title": "MELO on s, seed 0"}))
            draw(right).drop(columns=["what", "editor"]).to_parquet(folder / "records.parquet")
    folders = [str(tmp_path / name) for name in "ab"]
    assert second_draw.main([*folders, "--paper", "melo"]) == 0
    told = capsys.readouterr().out
    assert "| exact_match | 0.250 | 0.250 | 1 |" in told
    assert "| melo-s: MELO on s, seed 0 | edits | end | exact_match | 0.500 | 0.250 |" in told
    assert second_draw.main(folders) == 0
    assert "| exact_match | 0.250 | 0.250 | 2 |" in capsys.readouterr().out
    assert second_draw.main([folders[0], str(tmp_path)]) == 2
    assert "no finished run below" in capsys.readouterr().err
    (tmp_path / "b" / "runs" / "melo-s-b0123" / "records.parquet").write_text("broken")
    assert second_draw.main(folders) == 2
    assert "delete the folder and run again" in capsys.readouterr().err
