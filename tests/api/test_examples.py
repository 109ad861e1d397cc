"""What a newcomer runs first: README's first code block and the notebook, on a tiny model."""

import json
import re
from pathlib import Path

import pytest

from lib.api import supplies
from lib.backbones.sources import tiny
from lib.report.pages.notebook import execute

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "notebooks" / "edit_a_model.ipynb"


def test_readmes_first_code_block_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """The names in it stand for a tiny model and invented text here: nothing is downloaded."""
    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    model, tokenizer = tiny.tiny_llama()
    (named,) = re.findall(r'lib\.load\("([^"]+)"\)', block[1])
    model.save_pretrained(tmp_path / "models" / named)
    tokenizer.save_pretrained(tmp_path / "models" / named)
    monkeypatch.setenv("STUDY_MODELS", str(tmp_path / "models"))
    monkeypatch.setattr(supplies, "TEXT", "invented")
    monkeypatch.chdir(tmp_path)
    exec(compile(block[1], "README.md", "exec"), {"__name__": "readme"})
    said = capsys.readouterr().out
    assert "before" in said and "rephrase" in said and "locality" in said
    assert (tmp_path / "norland" / "edits.json").is_file()


def test_the_notebook_runs_with_ten_cells_and_the_face_alone(tmp_path: Path) -> None:
    cells = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    assert len(cells) == 10
    code = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    imported = re.findall(r"^(?:import|from) .*$", code, re.MULTILINE)
    assert imported == ["import pandas as pd", "import lib"]
    given = {"model_name": "tiny-llama", "text": "invented", "folder": str(tmp_path / "kept")}
    done = execute(NOTEBOOK, tmp_path / "out.ipynb", given, progress=False)
    assert done.error == ""
    shown = (tmp_path / "out.ipynb").read_text("utf-8")
    assert "Unedited model" in shown and "those of tiny-llama" in shown
