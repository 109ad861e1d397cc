"""What every paper's page says in the same way."""

import re
from pathlib import Path

import pandas as pd

import papers.elder.claims  # noqa: F401  (registers the paper's tests)
from lib.runs.study import Study
from papers import common
from tests.papers.elder.invented_elder import InventedStudy


def test_findings_are_judged_where_their_editors_are_planned(tmp_path: Path) -> None:
    study = InventedStudy(tmp_path)
    found = common.findings(study)
    assert set(found.by_setting) == {"counterfact", "zsre"}
    kept = pd.read_csv(tmp_path / "tables" / "elder-findings.csv")
    assert kept["verdict"].tolist() == found.tidy["verdict"].tolist() and len(kept) == 11
    shown = found._repr_html_()
    assert "<b>zsre, a tiny model.</b>" in shown and shown.count('class="claim"') == 6
    numbers = found.numbers
    assert list(numbers["setting"].unique()) == ["counterfact", "zsre"] and len(numbers) >= 11

    document = study.document
    spec = {"key": "k", "sentence": "s", "source": "o", "test": "defers", "editor": "ELDER",
            "subsets": ["upstream"], "at_most": 0.1}  # fmt: skip

    class Fewer(InventedStudy):
        @property
        def document(self):
            return document | {
                "findings": [
                    spec | {"settings": ["zsre", "elsewhere"]},
                    spec | {"key": "l", "needs": ["Nobody"]},
                    spec | {"key": "m", "editor": "Nobody"},
                ]
            }

    fewer = common.findings(Fewer(tmp_path))
    assert fewer.tidy[["setting", "key"]].values.tolist() == [["zsre", "k"]]
    nothing = common.findings(Fewer(tmp_path, empty=True)).tidy
    assert nothing["evidence"].tolist() == ["No run of this setting is finished."]


def test_one_fact_is_edited_on_a_pages_backbone(tmp_path: Path) -> None:
    study = Study.open("elder", "smoke", output=tmp_path, device="cpu")
    shown = common.one_edit(study, "counterfact", "ELDER").data
    (fact,) = re.findall(r">the edit</th><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td>", shown)
    stream = study.resources.materials(study.main_run("counterfact", "ELDER").spec, ()).stream
    assert fact[:2] == (stream.edits[0].prompt, stream.edits[0].target)
    assert ">in other words</th>" in shown and ">something else</th>" in shown
    taught = common.one_edit(study, "counterfact", "ELDER", steps=200, lr=0.01).data
    assert re.search(rf"<td>{re.escape(fact[2])}</td><td>{fact[1]}", taught)  # before, after
    assert not any(study.store.root.glob("*/manifest.json"))


def test_where_no_fact_can_be_edited_the_reason_is_told(tmp_path: Path) -> None:
    study = Study.open("elder", "smoke", output=tmp_path, device="cpu")
    assert "no run on" in common.one_edit(study, "elsewhere", "ELDER").data
    told = common.one_edit(study, "counterfact", "ELDER", epsilom=3).data
    assert "epsilom" in told and "<p>" in told
