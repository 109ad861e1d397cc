"""The papers' YAML files: what is in them is run, and what may not be in them is refused."""

import copy
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lib import editors
from lib.errors import UsageError
from lib.runs import plan, schema, settings
from lib.runs.settings import FOLDER, PROFILES, laid_out, papers, read_paper
from lib.runs.study import Study
from lib.storage import documents
from lib.storage.checked import FaultyError, checked
from lib.storage.documents import plain

FILES = sorted((*FOLDER.glob("*/*.yaml"), *editors.SETTINGS.glob("*.yaml")))

Place = tuple[str | int, ...]
# Mappings whose keys are names that a paper gives: below these keys, and a whole page's `tables`.
NAMED = {
    "editors", "sweeps", "forms", "groups", "rows", "items", "not_run", "n_reported", "epsilon",
    "parts", "metric", "margin", "better", "backbone",
}  # fmt: skip
# Parts of an editor's or a sweep's entry, checked once the setting around them is sound.
WITHIN = {"changes", "stream", "protocol", "cost"}


def mappings(node: Any, place: Place = (), seen: set[int] | None = None) -> Iterator[Any]:
    """Every mapping of parsed YAML once, however many aliases lead to it, with its place."""
    seen = set() if seen is None else seen
    if isinstance(node, dict) and id(node) not in seen:
        seen.add(id(node))
        yield place, node
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, item in items:
        if isinstance(item, (dict, list)):
            yield from mappings(item, (*place, key), seen)


def is_named(place: Place, mapping: dict[str, Any]) -> bool:
    """Whether the mapping's keys are names."""
    last = place[-1] if place else ""
    if {"items", "n_reported"} & set(place):
        return True
    settings_of_a_block = last == "settings" and place[0] in ("common", "profiles")
    columns = last == "columns" and all(isinstance(item, (list, str)) for item in mapping.values())
    shown = last == "columns" and all(isinstance(item, dict) for item in mapping.values())
    return last in NAMED or last == "tables" or settings_of_a_block or columns or shown


def rounds(document: dict[str, Any]) -> list[list[tuple[Place, dict[str, Any], str]]]:
    """Keys to misspell together, so that each is a fault of its own: equally deep, at most one of
    a mapping, and of the parts that are checked at the same time."""
    found = defaultdict(list)
    for place, mapping in mappings(document):
        if is_named(place, mapping) or ("source" in mapping and "value" in mapping):
            continue
        entry = next((at for at, step in enumerate(place) if step in ("editors", "sweeps")), 99)
        within = len(place) > entry + 2 and place[entry + 2] in WITHIN
        late = place[entry] if within else ""
        for number, key in enumerate(mapping):
            block = place[:2] if place[:1] == ("profiles",) else ("common",)
            found[block, late, len(place), number].append((place, mapping, key))
    return list(found.values())


def misspelt(mapping: dict[str, Any], key: str) -> dict[str, Any]:
    """The mapping with one key misspelt, in place and in order; the mapping as it was."""
    before = dict(mapping)
    mapping.clear()
    mapping.update({f"{name}x" if name == key else name: item for name, item in before.items()})
    return before


def faults_of(document: dict[str, Any], profile: str) -> dict[Place, str]:
    try:
        laid_out(document, profile)
    except FaultyError as error:
        return dict(error.faults)
    return {}


@pytest.mark.parametrize("paper", papers())
def test_every_misspelt_key_of_the_settings_is_refused(paper: str) -> None:
    document = copy.deepcopy(documents.read(FOLDER / paper / "settings.yaml"))
    tried = 0
    for group in rounds(document):
        before = [(mapping, misspelt(mapping, key)) for _, mapping, key in group]
        block = group[0][0][:2]
        profile = block[1] if len(block) == 2 and block[0] == "profiles" else "paper"
        told = faults_of(document, profile)
        for mapping, original in before:
            mapping.clear()
            mapping.update(original)
        for place, _, key in group:
            text = told.get((*place, f"{key}x"), "")
            assert text == f"no such key; did you mean {key}?", (place, key, told)
            tried += 1
    assert tried > 200 and not faults_of(document, "paper")


@pytest.mark.parametrize("paper", papers())
def test_every_misspelt_key_of_the_page_is_refused(paper: str) -> None:
    document = copy.deepcopy(documents.read(FOLDER / paper / "page.yaml"))
    for place, mapping in mappings(document):
        for key in () if is_named(place, mapping) else list(mapping):
            before = misspelt(mapping, key)
            with pytest.raises(FaultyError) as caught:
                checked(schema.Page, document)
            told = dict(caught.value.faults)
            assert told[(*place, f"{key}x")] == f"no such key; did you mean {key}?"
            mapping.clear()
            mapping.update(before)


@pytest.mark.parametrize("paper", papers())
def test_a_misspelt_source_or_value_is_refused(paper: str) -> None:
    document = copy.deepcopy(documents.read(FOLDER / paper / "settings.yaml"))
    pairs = [one for one in mappings(document) if set(one[1]) == {"value", "source"}]
    assert len(pairs) > 10
    for place, pair in pairs:
        for key in ("value", "source"):
            before = misspelt(pair, key)
            with pytest.raises(FaultyError) as caught:
                plain(document)
            assert dict(caught.value.faults) == {
                (*place, f"{key}x"): f"no such key; did you mean {key}?"
            }
            pair.update(before)
            del pair[f"{key}x"]


@pytest.mark.parametrize("paper", papers())
@pytest.mark.parametrize("profile", [name for name in PROFILES if name != "paper"])
def test_a_misspelt_name_in_a_profile_is_refused(paper: str, profile: str) -> None:
    document = documents.read(FOLDER / paper / "settings.yaml")
    tried = 0
    for place, mapping in mappings(document["profiles"][profile]):
        if place and (place[-1] in ("editors", "sweeps") or place == ("settings",)):
            for name, entry in mapping.items():
                if {"kind", "parameter"} & set(entry or ()):
                    continue
                wrong = copy.deepcopy(document)
                inside = wrong["profiles"][profile]
                for step in place:
                    inside = inside[step]
                misspelt(inside, name)
                told = faults_of(wrong, profile)[("profiles", profile, *place, f"{name}x")]
                assert told.endswith(f"did you mean {name}?")
                tried += 1
    assert tried


def invented() -> dict[str, Any]:
    """A paper with one setting."""
    setting = {
        "title": "invented", "reported": None, "dataset": "invented", "backbone": "tiny-gpt2",
        "tune": None, "stream": {"kind": "records", "n_edits": 4, "batch_size": 2},
        "protocol": {"rounds": "single"}, "seeds": 1,
        "editors": {"FT": {"kind": "ft", "changes": {"steps": 3}}, "MEMIT": {"kind": "memit"}},
        "sweeps": {"steps": {"title": "steps", "editors": ["FT"], "parameter": "steps",
                             "values": [3, 5]}},
        "cost": {"seconds": 1, "seconds_per_edit": 0.5, "gigabytes": 1},
    }  # fmt: skip
    small = {"every": {"seeds": 2}, "settings": {"a": {"editors": {"FT": {"changes": {"lr": 1}}}}}}
    return {
        "title": "t", "order": 1, "short": "s", "venue": "v", "summary": "m",
        "common": {"datasets": ["zsre"], "settings": {"a": setting}},
        "profiles": {"paper": {}, "laptop": {}, "gpu": {"leaves_out": ["a"]}, "smoke": small,
                     "overnight": {}},
    }  # fmt: skip


WRONG = {
    "changes.lr": ("1e-2", "should be a valid number, not '1e-2'; no quotes, and 1.0e-2"),
    "changes.steps": ("many", "should be a valid integer, not 'many'"),
    "changes.site": ("block 3", "'block 3' names no layers; write \"blocks 13-17 mlp_out\""),
}


@pytest.mark.parametrize("place", WRONG)
def test_wrong_types_of_an_editor_are_refused(place: str) -> None:
    value, text = WRONG[place]
    document = invented()
    changes = document["common"]["settings"]["a"]["editors"]["FT"]["changes"]
    changes[place.split(".")[1]] = value
    document["profiles"]["smoke"] = {}
    told = faults_of(document, "smoke")
    assert list(told) == [("common", "settings", "a", "editors", "FT", *place.split("."))]
    assert next(iter(told.values())).startswith(text)


def test_other_wrong_values_are_refused() -> None:
    def told(part: str, **values: Any) -> str:
        document = invented()
        inside = document["common"]["settings"]["a"]
        for step in filter(None, part.split(".")):
            inside = inside[step]
        inside.update(values)
        return "\n".join(faults_of(document, "smoke").values())

    memit = {"kind": "memit", "changes": {"value_steps": 2.5, "history": "nonsense"}}
    assert "integer, not 2.5" in told("editors", MEMIT=memit)
    assert "'nonsense' is none of 'none', 'lambda' or 'one'" in told("editors", MEMIT=memit)
    assert "integer, not '4'" in told("stream", n_edits="4")
    assert "is none of 'consecutive' or 'single'" in told("protocol", rounds="double")
    assert "integer, not True" in told("", known=True)
    assert "did you mean tiny-llama?" in told("", backbone="tiny-lama")
    assert "did you mean invented?" in told("", dataset="invent")
    assert "did you mean memit?" in told("editors", MEMIT={"kind": "memitt"})
    assert "number, not '1e2'" in told("cost", seconds="1e2")
    assert "did you mean FT?" in told("sweeps.steps", editors=["F"])
    assert "did you mean steps?" in told("sweeps.steps", parameter="stepz")
    assert "integer, not 'many'" in told("sweeps.steps", values=["many"])
    assert "no such part" in told("sweeps.steps", parameter="stream.batch.size")
    assert "did you mean observe?" in told("sweeps.steps", protocol={"observ": True})
    assert "did you mean first?" in told("editors.FT", stream={"firs": 2})
    assert "should be an object, not 3" in told("editors", FT=3)
    assert "should be an object, not ['FT']" in told("", editors=["FT"])


def test_a_profile_lays_its_changes_over_the_settings_of_the_backbone() -> None:
    made, _ = laid_out(invented(), "smoke")
    setting = made["settings"]["a"]
    assert setting["seeds"] == 2
    known = editors.settings_of("ft", "tiny-gpt2")
    assert setting["editors"]["FT"] == {"kind": "ft", "config": known | {"steps": 3, "lr": 1}}
    assert setting["editors"]["MEMIT"]["config"] == editors.settings_of("memit", "tiny-gpt2")
    assert not laid_out(invented(), "gpu")[0]["settings"]["a"]["enabled"]


def test_a_fault_is_told_with_file_place_and_remedy(monkeypatch, tmp_path) -> None:
    paper = papers()[0]
    text = (FOLDER / paper / "settings.yaml").read_text("utf-8")
    (tmp_path / paper).mkdir()
    path = tmp_path / paper / "settings.yaml"
    path.write_text(
        text.replace("n_edits:", "n_edit:").replace("seeds: 3", "seeds: three"), "utf-8"
    )
    monkeypatch.setattr(settings, "ROOT", tmp_path)
    monkeypatch.setattr(settings, "_file", lambda *names: path)
    settings._checked_profile.cache_clear()
    with pytest.raises(UsageError) as caught:
        settings.profile_of(paper, "paper")
    settings._checked_profile.cache_clear()
    lines = str(caught.value).splitlines()
    start = f"{paper}/settings.yaml: common.settings."
    assert len(lines) > 2 and all(line.startswith(start) for line in lines)
    assert any(line.endswith("n_edit: no such key; did you mean n_edits?") for line in lines)
    assert any("seeds: should be a valid integer, not 'three'" in line for line in lines)


@pytest.mark.parametrize("paper", papers())
@pytest.mark.parametrize("profile", PROFILES)
def test_a_runs_configuration_is_what_the_yaml_says(paper: str, profile: str) -> None:
    stated = settings.layered(read_paper(paper), profile)
    for run in plan.runs(paper, profile, device="cpu"):
        entry = plain(stated[run.setting]["editors"][run.editor])
        base = editors.settings_of(entry["kind"], run.spec["backbone"])
        changes = editors.spelled_out(entry.get("changes", {}))
        expected = base | changes | {"seed": run.seed}
        if run.sweep:
            swept = plain(stated[run.setting]["sweeps"][run.sweep])["parameter"].split(".")[0]
            expected[swept] = run.spec["config"].get(swept)
        assert {k: v for k, v in expected.items() if v is not None} == {
            k: v for k, v in run.spec["config"].items() if v is not None
        }, run.title


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.parent.name + "/" + path.name)
def test_no_key_stands_twice(path: Path) -> None:
    """Of two equal keys YAML keeps the last without a word."""
    nodes = [yaml.compose(path.read_text("utf-8"))]
    while nodes:
        node = nodes.pop()
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value]
            assert len(keys) == len(set(keys)), (keys, str(node.start_mark))
            nodes += [item for _, item in node.value]
        elif isinstance(node, yaml.SequenceNode):
            nodes += node.value


def test_hyper_parameters_stand_once() -> None:
    """Without `changes` an editor has the same hyper-parameters on a backbone in every paper."""
    for paper in papers():
        for profile in PROFILES:
            made, _ = settings.profile_of(paper, profile)
            for name, setting in settings.layered(read_paper(paper), profile).items():
                for label, entry in setting["editors"].items():
                    if not entry.get("changes"):
                        known = editors.settings_of(entry["kind"], setting["backbone"])
                        assert made["settings"][name]["editors"][label]["config"] == known


def test_a_profile_extends_another() -> None:
    document = invented()
    document["profiles"]["laptop"] = {
        "every": {"seeds": 3},
        "settings": {"a": {"stream": {"n_edits": 6}, "sweeps": {"steps": None}}},
    }  # fmt: skip
    document["profiles"]["overnight"] = {
        "extends": "laptop", "settings": {"a": {"stream": {"batch_size": 3}}}
    }  # fmt: skip
    made = laid_out(document, "overnight")[0]["settings"]["a"]
    assert (made["seeds"], made["stream"]["n_edits"], made["stream"]["batch_size"]) == (3, 6, 3)
    assert not made["sweeps"]
    document["profiles"]["laptop"]["leaves_out"] = ["a"]
    assert not laid_out(document, "overnight")[0]["settings"]["a"]["enabled"]
    document["profiles"]["overnight"]["settings"]["a"]["enabled"] = True
    assert laid_out(document, "overnight")[0]["settings"]["a"]["enabled"]
    document["profiles"]["laptop"]["settings"]["a"]["stream"]["n_edit"] = 6
    place = ("profiles", "laptop", "settings", "a", "stream", "n_edit")
    del document["profiles"]["laptop"]["leaves_out"]
    assert place in faults_of(document, "overnight")


def test_a_setting_like_another_pages_takes_over_all_but_what_is_its_own() -> None:
    profile = "laptop"
    there = settings.layered(read_paper("side_by_side"), profile)["facts"]
    document = invented()
    document["profiles"][profile] = {
        "every": {"seeds": 9},
        "settings": {
            "a": {
                "like": "side_by_side/facts",
                "editors": {"FT": {"changes": {"steps": 7}}, "ROME": {"kind": "rome"}},
            }
        },
    }
    here = settings.layered(document, profile)["a"]
    assert here["title"] == "invented" and set(here["sweeps"]) == {"steps"}
    assert set(here["editors"]) == {"FT", "MEMIT", "ROME"}
    assert here["editors"]["MEMIT"] == there["editors"]["MEMIT"]
    assert here["editors"]["FT"]["changes"]["steps"] == 7
    own = {"title", "reported", "enabled", "editors", "sweeps"}
    assert {key: here[key] for key in there if key not in own} == {
        key: item for key, item in there.items() if key not in own
    }
    for wrong, told in (("side_by_sid/facts", "side_by_side"), ("side_by_side/fact", "facts")):
        document["profiles"][profile]["settings"]["a"]["like"] = wrong
        assert f"did you mean {told}?" in "\n".join(faults_of(document, profile).values())


@pytest.mark.parametrize("profile", ["laptop", "overnight"])
def test_pages_on_one_stream_share_their_runs(profile: str) -> None:
    runs = {
        (paper, run.setting, run.editor, run.seed): run
        for paper in papers()
        for run in plan.runs(paper, profile, device="cpu")
        if not run.sweep
    }
    for page, setting, other in (
        ("comeba_hk", "cf-consecutive", ("side_by_side", "facts")),
        ("elder", "counterfact", ("side_by_side", "facts")),
        ("melo", "zsre-causal", ("elder", "zsre")),
    ):
        both = {
            editor: (run, runs[*other, editor, seed])
            for (paper, name, editor, seed), run in runs.items()
            if (paper, name) == (page, setting) and (*other, editor, seed) in runs
        }
        assert len(both) >= 2, page
        for editor, (run, theirs) in both.items():
            assert run.identity == theirs.identity, (page, editor)


PLACE = "cf-single.editors.COMEBA-HK.changes.alpha"


def test_overrides_change_the_runs_that_they_concern_and_stand_apart(tmp_path: Path) -> None:
    study = Study.open("comeba_hk", "smoke", output=tmp_path)
    other = Study.open("comeba_hk", "smoke", output=tmp_path, overrides={PLACE: 1.5})
    assert other.overridden() == [("cf-single.editors.COMEBA-HK.config.alpha", 2.2, 1.5)]
    assert study.overridden() == [] and study.departures("cf-single") != other.departures(
        "cf-single"
    )
    assert other.folder != study.folder and other.folder.parent == study.folder.parent
    assert other.store.root == study.store.root  # what is the same is made once
    pairs = list(zip(study.runs, other.runs, strict=True))
    changed = {(a.setting, a.editor) for a, b in pairs if a.identity != b.identity}
    assert changed == {("cf-single", "COMEBA-HK")}
    nested = {"cf-single": {"editors": {"COMEBA-HK": {"changes": {"alpha": 1.5}}}}}
    assert [run.identity for run in other.runs] == [
        run.identity for run in plan.runs("comeba_hk", "smoke", overrides=nested)
    ]
    assert Study.open("comeba_hk", "smoke", output=tmp_path).document == study.document


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ({f"{PLACE}s": 1.5}, f"{PLACE}s: no such key; did you mean alpha?"),
        ({"cf-singel.seeds": 2}, "cf-singel: no such setting; did you mean cf-single?"),
        ({"cf-single.editors.COMEBA.changes.alpha": 1.5}, "did you mean COMEBA-HK?"),
        ({PLACE: "low"}, f"{PLACE}: should be a valid number, not 'low'"),
        ({"cf-single-gptj.seeds": 2}, "the profile smoke does not run it"),
        ({"cf-single.seeds": {1, 2}}, "places and plain values"),
        ([PLACE], "places and plain values"),
    ],
)
def test_an_override_is_checked_as_the_file_is(overrides, told: str) -> None:
    with pytest.raises(UsageError) as raised:
        Study.open("comeba_hk", "smoke", overrides=overrides)
    assert str(raised.value).startswith("overrides: ") and told in str(raised.value)
