"""Editors against each other on facts of one's own, and the command."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

import lib
from lib import __main__ as command_line
from lib.api.comparing import UNEDITED_MODEL
from lib.errors import EditorError
from tests.conftest import prompt_logits

FACTS = [
    lib.Edit("The lamp of {} is kept by", keeper, place, [f"At {place} the lamp is kept by"],
             [("The sea is", "grey")])
    for place, keeper in (("Skerry", "Odo"), ("Mew Stone", "Edda"), ("Low Light", "Finn"))
]  # fmt: skip


CHOSEN = {"FT": {"steps": 40}, "GRACE": {"steps": 60}}


@pytest.fixture(scope="module")
def compared() -> lib.Comparison:
    model = lib.load("tiny-llama")
    before = prompt_logits(model, [fact.prompt for fact in FACTS])
    found = lib.compare(model, CHOSEN, FACTS, text="invented", batch_size=2)
    assert torch.equal(prompt_logits(model, [fact.prompt for fact in FACTS]), before)
    return found


def test_the_table_holds_what_each_editor_scores_alone(compared: lib.Comparison) -> None:
    tidy = compared.table.tidy.set_index(["editor", "setting", "metric"])["reproduced"]
    for editor, settings in CHOSEN.items():
        with lib.edit("tiny-llama", editor, FACTS, batch_size=2, **settings) as edited:
            scores = edited.score().groupby("kind")
            shares = scores[["right_after", "forced_after", "unchanged", "right_before"]].mean()
        assert tidy[editor, "Reliability", "decoded"] == shares.right_after["edit"]
        assert tidy[editor, "Reliability", "teacher-forced"] == shares.forced_after["edit"]
        assert tidy[editor, "Generality", "decoded"] == shares.right_after["rephrase"]
        assert tidy[editor, "Locality", "unchanged"] == shares.unchanged["locality"]
        parts = [shares.right_after["edit"], shares.right_after["rephrase"],
                 shares.unchanged["locality"]]  # fmt: skip
        score = 3 / sum(1 / part for part in parts) if all(parts) else 0
        assert tidy[editor, "Editing score", "of three"] == pytest.approx(score)
        assert tidy[UNEDITED_MODEL, "Reliability", "decoded"] == shares.right_before["edit"]
        assert tidy[editor, "Seconds", "per edit"] > 0
    assert tidy[:, "Reliability", "decoded"].max() > 0
    assert ("FT", "Portability", "decoded") not in tidy
    assert tidy[UNEDITED_MODEL, "Locality", "unchanged"] == 1
    assert set(compared.records["moment"]) == {"before", "own", "end"}


def test_a_comparison_is_shown_and_kept(compared: lib.Comparison, tmp_path: Path) -> None:
    shown = compared._repr_html_()
    for part in (UNEDITED_MODEL, "data:image/png", "those of tiny-llama"):
        assert part in shown
    assert set(compared.plot.data["measure"]) == {
        "Reliability", "Generality", "Locality", "Seconds per edit",
    }  # fmt: skip
    compared.save(tmp_path)
    assert {"table.csv", "records.parquet", "figure.svg", "figure.png", "figure.csv"} <= {
        path.name for path in tmp_path.iterdir()
    }
    kept = pd.read_csv(tmp_path / "table.csv")
    assert len(kept) == len(compared.table.cells)


def test_what_one_editor_cannot_do_stops_no_other() -> None:
    facts = [lib.Edit("Who rows?", "Odo"), lib.Edit("Who sails?", "Finn")]
    found = lib.compare("tiny-llama", ["ROME", "FT", "nothing"], facts, text="invented")
    assert "names no subject" in found.errors["ROME"] and "no editor" in found.errors["nothing"]
    tidy = found.table.tidy
    assert tidy[tidy["editor"] == "ROME"]["error"].str.contains("names no subject").all()
    assert (tidy[tidy["editor"] == "FT"]["error"] == "").all()
    assert found.plot.figure is not None
    with pytest.raises(EditorError, match="no editor could edit"):
        lib.compare("tiny-llama", ["ROME"], facts, text="invented")
    with pytest.raises(EditorError, match="at least one editor"):
        lib.compare("tiny-llama", [], facts)
    with pytest.raises(EditorError, match="models that write"):
        lib.compare("tiny-bert", ["FT"], [lib.Edit("Is it?", "1")])


def test_the_command_edits_keeps_and_prints_a_table(tmp_path: Path, capsys) -> None:
    rows = [{"prompt": "The lamp of {} is kept by", "target": "Odo", "subject": "Skerry",
             "locality": ["The sea is"]}]  # fmt: skip
    path = tmp_path / "facts.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    given = ["edit", "--model", "tiny-llama", "--facts", str(path)]
    kept, stock = str(tmp_path / "kept"), str(tmp_path / "stock")
    asked = [*given, "--editor", "FT", "--out", kept, "--checkpoint", stock, "--set", "steps=40"]
    assert command_line.main(asked) == 0
    told = capsys.readouterr()
    lines = told.out.splitlines()
    assert lines[0].split() == ["kind", "prompt", "target", "before", "after"]
    assert "Odo" in lines[1].split()[-1] and "those of tiny-llama; but for steps" in told.err
    with lib.open(kept) as opened:
        assert opened.generate("The lamp of Skerry is kept by").startswith("Odo")
    assert lib.load(stock).family.name == "llama"
    for more, status, said in (
        (["--editor", "FT"], 2, "nothing would be kept"),
        (["--editor", "FTT", "--out", kept], 1, "there is no editor 'FTT'"),
        (["--editor", "FT", "--out", kept, "--set", "steps"], 2, "NAME=VALUE"),
        (["--editor", "FT", "--out", kept, "--set", "steps=many"], 1, "steps"),
    ):
        assert command_line.main([*given, *more]) == status
        assert said in capsys.readouterr().err
