"""The embedded datasets, read from tiny invented archives."""

import gzip
import io
import json
import tarfile

import pytest

from lib.data.datasets import load
from lib.data.embedded import bigbench, facts, tables, triples
from lib.errors import AssetError
from tests.data.embedded.embedded_archives import prompts

pytest_plugins = ("tests.data.embedded.embedded_fixtures",)


def compact_forms(embedded_archives):
    places = (embedded_archives["cache"] / "data" / "bigbench").glob("*")
    return [path for path in places if path.is_dir()]


def test_extraction_keeps_rows_texts_and_canary_and_drops_the_archive(embedded_archives):
    assert not compact_forms(embedded_archives)
    assert bigbench.texts("nyt") == ["Text of nyt."]
    assert compact_forms(embedded_archives) and "bigbench" in embedded_archives["dropped"]
    manifest = json.loads((bigbench.folder() / "manifest.json").read_text())
    assert manifest["canary"] == "invented canary 123"
    assert manifest["parts"]["triples"]["rows"] == len(list(prompts()))
    assert bigbench.rows("fever") == ({"id": 3, "claim": "Ice sinks.", "label": "false"},)
    assert bigbench.rows("vitaminc")[0]["claim"] == "Onn is blue."
    assert bigbench.rows("multiemo_hotels")[0]["label"] == "positive"
    embedded_archives["paths"].clear()  # the archive is gone: the compact form is enough
    assert len(bigbench.rows("conflicts")) == 12
    with pytest.raises(AssetError, match="known"):
        bigbench.rows("nothing")


def test_a_broken_archive_leaves_no_half_made_cache(embedded_archives):
    with tarfile.open(embedded_archives["paths"]["bigbench"], "w:gz") as tar:
        content = b'{"examples": [{"input": "The capital of X is"}]}'
        info = tarfile.TarInfo("b/bigbench/benchmark_tasks/qa_wikidata/task.json")
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    with pytest.raises(AssetError, match="does not look as expected"):
        bigbench.rows("triples")
    assert not compact_forms(embedded_archives)


def test_facts_are_cleaned(embedded_archives):
    found = {fact.identity: fact for fact in triples.facts().facts}
    assert found["country:Two Lakes"].objects == ("Norland", "Sorland")
    for gone in ("citizenship of Ilse Viri", "Siege of Amsel", "Norland City"):
        assert f"country:{gone}" not in found
    assert "city_country:Ümla3" in found and "city_country:Small" not in found
    assert "city_country:Twice" not in found  # two countries, no single answer
    assert found["country_capital:Norland"].object == "Sankt Nä"  # accents restored
    assert found["element_symbol:aium"].object == "A"


def test_without_the_large_archive_the_tables_alone_serve(embedded_archives):
    del embedded_archives["paths"]["bigbench"]
    found = load("zsre")
    relations = {edit.relation for edit in found.edits}
    assert relations <= set(tables_relations()) and len(relations) >= 3
    assert "large archive is absent (bigbench cannot be had)" in found.substitution
    assert found.upstream and all(probe.target for probe in found.upstream)
    assert load("counterfact").edits
    with pytest.raises(AssetError):
        load("nq")


def tables_relations():
    from lib.data.embedded.relations import TABLES

    return TABLES


def test_nothing_at_all_is_an_asset_error(embedded_archives):
    embedded_archives["paths"].clear()
    with pytest.raises(AssetError, match="cannot be had"):
        load("zsre")


def test_compact_files_are_the_same_byte_for_byte(embedded_archives, tmp_path):
    rows = [{"a": "Łódź"}, {"a": 2}]
    for name in ("one.gz", "two.gz"):
        bigbench.write_rows(tmp_path / name, rows)
    assert (tmp_path / "one.gz").read_bytes() == (tmp_path / "two.gz").read_bytes()
    assert gzip.decompress((tmp_path / "one.gz").read_bytes()).decode().startswith('{"a": "Łódź"}')
    assert tables.rows() == tables.rows()


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        ("who does n't like rick 's boat ?", "who doesn't like rick's boat?"),
        ("ain't no lake , no sea", "ain't no lake, no sea"),
        ("i  'm gon na see \u00a0 Łódź ( old )", "i'm gonna see Łódź (old)"),
    ],
)
def test_word_splitting_is_undone(stored, wanted):
    assert facts.joined(stored) == wanted
