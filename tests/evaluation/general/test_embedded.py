"""General ability: items from embedded data, and the subset "general" of streams and records."""

import dataclasses
import re
from pathlib import Path

import pandas as pd
import pytest

from lib.backbones.sources import loading
from lib.data import invented
from lib.data.embedded import bigbench, facts
from lib.data.embedded.triples import Fact, FactStore
from lib.data.order import is_probe
from lib.data.records import Probe, Stream
from lib.evaluation import prompts
from lib.evaluation.evaluator import Protocol
from lib.evaluation.general import embedded
from lib.runs.execute import execute
from lib.runs.progress import LineProgress
from lib.runs.resources import Resources
from lib.runs.store import Store
from lib.storage.fingerprints import content_hash
from tests.conftest import make, stream
from tests.data.test_streams import quick, run
from tests.runs.test_execute import smoke_runs

LANDS, TONGUES = ("Norland", "Sorland", "Westmark"), ("Brask", "Fenn")
FACTS = tuple(
    fact
    for i in range(400)
    for fact in (
        Fact("country", f"Lake Onn {i}", (LANDS[i % 3],), "invented"),
        Fact("city_country", f"Burg{i}", (LANDS[i % 3],), "invented"),
        Fact("native_language", f"Ilse V{i}ri", (TONGUES[i % 2],), "invented"),
        Fact("work_language", f"Book {i} and Tide", (TONGUES[i % 2],), "invented"),
    )
)


def reviews(name: str) -> tuple[dict, ...]:
    """Three of four are negative; every fifth is too long to be cut."""
    long = "and on and on it goes without a stop"
    return tuple(
        {
            "text": f"In {name} number {i} the tea was so so"
            f"{' ' + ' '.join([long] * 4) if i % 5 == 0 else ''}. The rest is left out, "
            "because the opening sentences are enough for anybody who has to judge the place.",
            "label": ("negative", "negative", "neutral", "positive")[i % 4],
        }
        for i in range(80)
    )


def paragraphs(kind: str) -> list[str]:
    """Clauses that end in a word from before, but every third in a new one."""
    head = "The old lighthouse of {n} has a keeper who reads the paper every day in the"
    return [
        f"{head.format(n=f'{kind}{i}')} {'harbour' if i % 3 == 0 else 'lighthouse'}, then sleeps."
        for i in range(60)
    ]


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch):
    """Invented rows behind the embedded data."""
    monkeypatch.setattr(bigbench, "rows", reviews)
    monkeypatch.setattr(bigbench, "texts", paragraphs)
    monkeypatch.setattr(facts, "single_facts", lambda: list(FACTS))
    monkeypatch.setattr(facts, "store", lambda: FactStore(FACTS, ("invented",)))
    embedded._items.cache_clear()
    yield monkeypatch
    embedded._items.cache_clear()


def by_task(found: tuple[Probe, ...]) -> dict[str, list[Probe]]:
    tasks: dict[str, list[Probe]] = {}
    for probe in found:
        tasks.setdefault(embedded.task_of(probe), []).append(probe)
    return tasks


# -- the items -------------------------------------------------------------------------------


def test_every_task_gives_as_many_items_in_a_fixed_order(data) -> None:
    found = embedded.probes(6)
    tasks = by_task(found)
    assert {name: len(probes) for name, probes in tasks.items()} == dict.fromkeys(embedded.TASKS, 6)
    assert all(probe.kind == "general" for probe in found)
    assert [p.identity for p in tasks["sums"]] == [f"general/sums/{n}" for n in range(6)]
    embedded._items.cache_clear()
    assert embedded.probes(6) == found
    assert [p.prompt for p in embedded.probes(3)] == [
        probe.prompt for probes in tasks.values() for probe in probes[:3]
    ]


def test_labels_are_balanced_and_relations_take_turns(data) -> None:
    tasks = by_task(embedded.probes(8))
    assert [p.target for p in tasks["sentiment"]].count("positive") == 4
    assert sum(p.prompt.endswith("Person:") for p in tasks["entities"]) == 4
    # Three relations in turn; the fourth, work_language, can be guessed and is left out.
    asked = [re.sub(r"[0-9]+", "", p.prompt) for p in tasks["recall"]]
    assert asked[:3] == asked[3:6] and len(set(asked)) == 3


def test_answers_are_those_of_the_prompts(data) -> None:
    tasks = by_task(embedded.probes(30))
    truth = {fact.subject: fact.object for fact in FACTS}
    for probe in tasks["sums"]:
        assert probe.prompt.endswith(f"= {probe.target}. In numbers, the answer is")
    for probe in tasks["reading"]:
        told, subject = re.fullmatch(r"(.*\.) (?:Name|City): (.*)\. .*", probe.prompt).groups()
        assert probe.target == truth[subject]
        assert probe.target in told and sum(land in told for land in (*LANDS, *TONGUES)) == 2
    for probe in tasks["entities"]:
        asked = probe.prompt.rpartition("\n")[2]
        assert probe.target.startswith({"Person:": "Ilse V", "Place:": "Burg"}[asked])
        assert probe.target in probe.prompt
    for probe in tasks["completion"]:
        assert probe.target == "lighthouse" and probe.prompt.endswith(" in the")
    for probe in tasks["sentiment"]:
        assert "so so." in probe.prompt and "left out" not in probe.prompt
        assert "and on" not in probe.prompt


def test_development_items_are_never_measured(data) -> None:
    measured = {probe.prompt for probe in embedded.probes(10_000)}
    development = {probe.prompt for probe in embedded.probes(10_000, development=True)}
    assert measured.isdisjoint(development)
    assert 0.1 < len(development) / len(measured | development) < 0.3


def test_no_item_names_a_subject_that_is_edited(data) -> None:
    free = {fact.subject for fact in FACTS if is_probe(fact, 0, facts.QA_PROBES)}
    assert facts.QA_PROBES <= facts.CF_PROBES  # so neither dataset edits these
    named = [fact.subject for fact in FACTS if fact.relation != "work_language"]

    def subjects(probes: tuple[Probe, ...]) -> set[str]:
        words = [f" {p.prompt} ".replace("\n", " ").replace(". ", " . ") for p in probes]
        return {name for name in named if any(f" {name} " in text for text in words)}

    found = subjects(embedded.probes(40))
    assert found and found <= free
    edited = sorted(found)[: len(found) // 2]
    left = subjects(embedded.probes(40, edited={name.casefold() for name in edited}))
    assert left and left.isdisjoint(edited)


def test_recall_and_reading_share_no_subject(data) -> None:
    tasks = by_task(embedded.probes(10_000))
    told = " ".join(f"{probe.prompt} " for probe in tasks["reading"])
    names = {re.sub(r"^(Name|City): (.*)\. .*", r"\2", p.prompt) for p in tasks["recall"]}
    assert len(names) > 20 and not any(f" {name} " in told or f" {name}." in told for name in names)


def test_tasks_that_need_the_absent_archive_are_left_out(data) -> None:
    data.setattr(facts, "store", lambda: FactStore(FACTS, ("invented",), "no archive"))
    data.setattr(bigbench, "rows", lambda name: pytest.fail("the archive was asked"))
    assert set(by_task(embedded.probes(4))) == set(embedded.FROM_TABLES)


# -- streams and rows ------------------------------------------------------------------------


def with_general(plain: Stream, count: int = 3) -> Stream:
    return dataclasses.replace(plain, general=invented.general(count))


def test_general_rows_decide_the_content_of_a_stream_only_where_there_are_some() -> None:
    plain = stream()
    before = [plain.edits, plain.batch_size, plain.holdout, plain.upstream, plain.near]
    assert plain.content == content_hash(before)
    assert with_general(plain, 0).content == plain.content
    found = {with_general(plain, count).content for count in (0, 1, 2)}
    assert len(found) == 3
    owned = quick()
    assert with_general(owned).content not in {owned.content, with_general(plain).content}


@pytest.mark.parametrize("plain", [stream(), quick()], ids=["pools", "owners"])
def test_general_rows_belong_to_no_edit(plain: Stream) -> None:
    chosen = with_general(plain)
    batches = prompts.row_batches(chosen, "general", 4)
    assert [len(batch.rows) for batch in batches] == [4, 2]
    found = [row for batch in batches for row in batch.rows]
    assert {row.edit_index for row in found} == {-1} and {row.other for row in found} == {""}
    assert [row.record for row in found] == [probe.identity for probe in chosen.general]


@pytest.mark.parametrize("plain", [stream(), quick()], ids=["pools", "owners"])
def test_general_rows_are_scored_before_and_at_the_end(plain: Stream) -> None:
    chosen = with_general(plain)
    protocol = Protocol(checkpoint_every=1, max_new_tokens=2, evaluation_batch=4)
    records, _ = run(make("ft", loading.load("tiny-gpt2")), chosen, protocol)
    of_general = records[records["subset"] == "general"]
    assert of_general["moment"].value_counts().to_dict() == {"before": 6, "end": 6}
    assert set(of_general["edit_index"]) == {-1}
    assert "checkpoint" in set(records["moment"])
    without, _ = run(make("ft", loading.load("tiny-gpt2")), plain, protocol)
    others = records[records["subset"] != "general"].reset_index(drop=True)
    pd.testing.assert_frame_equal(others, without)


def test_single_rounds_score_general_rows_before_the_first_batch_alone() -> None:
    protocol = Protocol(max_new_tokens=2, rounds="single")
    records, _ = run(make("ft", loading.load("tiny-gpt2")), with_general(quick()), protocol)
    assert set(records[records["subset"] == "general"]["moment"]) == {"before"}
    assert "own" in set(records["moment"])


def test_a_general_answer_counts_if_every_token_is_right() -> None:
    backbone = loading.load("tiny-gpt2")
    chosen = stream(batch_size=6)
    learned = Probe("general/recall/0", chosen.edits[0].prompt, chosen.edits[0].target, "general")
    other = dataclasses.replace(learned, identity="general/recall/1", target="Nowhere")
    chosen = dataclasses.replace(chosen, general=(learned, other))
    records, _ = run(make("ft", backbone, steps=60), chosen, Protocol(max_new_tokens=12))
    found = records[records["subset"] == "general"].set_index(["record", "moment"])
    right = found["answer_accuracy"] == 1
    assert right["general/recall/0", "end"] and not right["general/recall/1", "end"]
    assert not right["general/recall/0", "before"]
    assert (right == (found["begins_with"] == 1)).all()  # teacher-forced and decoded agree


# -- runs ------------------------------------------------------------------------------------


def test_an_invented_run_has_general_rows_without_the_embedded_data(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(bigbench, "rows", lambda name: pytest.fail("embedded data was read"))
    monkeypatch.setattr(facts, "store", lambda: pytest.fail("embedded data was read"))
    plain = smoke_runs("zsre-causal")["FT"]
    options = plain.spec["stream"] | {"n_general": 2, "template": "Q: {}\nA:"}
    chosen = dataclasses.replace(plain, spec=plain.spec | {"stream": options})
    store = Store(tmp_path)
    assert execute(chosen, store, Resources(), LineProgress())
    found = store.finished(chosen)
    of_general = found.records[found.records["subset"] == "general"]
    assert set(of_general["moment"]) == {"before", "end"}
    assert set(of_general["prompt"]) == {probe.prompt for probe in invented.general(2)}
    assert found.manifest["dataset"]["counts"]["general"] == 4
    assert Resources().materials(plain.spec).stream.general == ()


def test_embedded_items_avoid_the_subjects_of_the_dataset(data) -> None:
    free = facts.single_facts()[0]
    subject = next(f.subject for f in FACTS if is_probe(f, 0, facts.QA_PROBES))
    edit = dataclasses.replace(
        stream().edits[0], prompt=f"Where is {subject}?", subject=subject, relation=free.relation
    )
    assert embedded.general_probes("zsre", 2, (edit,)) == embedded.probes(
        2, edited={subject.casefold()}
    )
    assert embedded.general_probes("zsre", 0, (edit,)) == ()
    assert Path(embedded.__file__).name == "embedded.py"  # the module is not hidden by a function
