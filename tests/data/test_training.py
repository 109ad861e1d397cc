"""Facts for training: nothing shared with the stream, worded as the stream, each with a probe."""

import dataclasses
from pathlib import Path

import pytest

from lib.data.records import Dataset, Edit, Probe
from lib.data.streams import PromptStyle, record_stream
from lib.data.training import TrainingFacts, training_facts
from lib.editors.finetune import FineTune
from lib.errors import RecordError, UsageError
from lib.runs import execute, plan
from lib.runs.resources import Resources
from lib.runs.store import Store
from lib.storage.cache import Cache

STYLE = PromptStyle(template="Q: {}\nA:", question_mark=True)


def record(number: int, **changes: object) -> Edit:
    """A record of one of two relations, the second much rarer."""
    relation = "harbour" if number % 5 else "keeper"
    made = Edit(
        identity=f"r{number}",
        prompt=f"What is the {relation} of Isle {number}x?",
        target=f"Port {number}",
        subject=f"Isle {number}x",
        rephrases=tuple(f"{word} {relation} has Isle {number}x?" for word in ("Which", "A", "B")),
        relation=relation,
    )
    return dataclasses.replace(made, **changes)


def dataset(count: int = 30, questions: int = 40) -> Dataset:
    asked = [Probe(f"q{i}", f"how high is sky {i}", f"{i} miles", "upstream") for i in range(99)]
    edits = tuple(map(record, range(count)))
    return Dataset("invented", edits, tuple(asked[:questions]), ("a file",), "made up")


def facts(source: Dataset, n_edits: int = 6, **sizes: int | None) -> TrainingFacts:
    test = record_stream(
        source, n_edits=n_edits, batch_size=2, seed=0, template="Q: {}\nA:", question_mark=True
    )
    return training_facts(source, test, style=STYLE, **({"n_train": 12, "n_valid": 5} | sizes))


def parts(source: Dataset, n_edits: int = 6, **sizes: int | None) -> tuple[set, set, set]:
    """Subjects and every prompt of test, validation and training."""
    test = record_stream(
        source, n_edits=n_edits, batch_size=2, seed=0, template="Q: {}\nA:", question_mark=True
    )
    made = facts(source, n_edits, **sizes)
    rows = (*test.edits, *test.holdout, *test.upstream)
    found = [{e.subject for e in test.edits} | {STYLE.key(row.prompt) for row in rows}]
    for part in (made.valid, made.train):
        texts = [t for e in part for t in (e.prompt, *e.rephrases, e.locality[0].prompt)]
        found.append({e.subject for e in part} | set(map(STYLE.key, texts)))
    return tuple(found)


def test_every_fact_has_a_rephrase_and_an_unrelated_prompt_in_the_streams_words() -> None:
    made = facts(dataset())
    assert [len(made.train), len(made.valid)] == [12, 5]
    for fact in (*made.train, *made.valid):
        assert fact.rephrases and len(fact.locality) == 1
        (probe,) = fact.locality
        assert probe.kind == "upstream" and probe.target.endswith("miles")
        for text in (fact.prompt, *fact.rephrases, probe.prompt):
            assert text.startswith("Q: ") and text.endswith("?\nA:") and "??" not in text
    assert made.sources == ("a file",) and made.substitution == "made up"


def test_test_validation_and_training_share_nothing() -> None:
    test, valid, train = parts(dataset())
    assert not test & valid and not test & train and not valid & train
    questions = [fact.locality[0].prompt for fact in facts(dataset()).train]
    assert len(set(questions)) == len(questions)


def test_what_meets_the_stream_is_left_out() -> None:
    source = dataset()
    intruders = (
        record(90, subject="Isle 0x", prompt="Who lives on Isle 0x?"),  # the subject
        record(91, prompt="What is the keeper of isle 0x", subject="isle 0x"),  # but for case
        record(92, rephrases=("Which harbour has Isle 1x",)),  # a wording
        record(93, locality=(Probe("own", "nq question: HOW high is sky 0?", "0", "upstream"),)),
        record(94, rephrases=()),
        record(95, rephrases=(record(95).prompt,)),
    )
    late = dataclasses.replace(source, edits=(*source.edits[:6], *intruders, *source.edits[6:]))
    assert facts(late) == facts(source)
    same_relation = dataclasses.replace(record(96), relation="harbour")
    kept = dataclasses.replace(source, edits=(*source.edits[:6], same_relation, *source.edits[6:]))
    assert facts(kept) != facts(source)


def test_a_subject_of_validation_is_no_subject_of_training() -> None:
    twin = record(97, subject="Isle 6x", prompt="What is the depth of Isle 6x?")
    source = dataset()
    made = facts(dataclasses.replace(source, edits=(*source.edits, twin)), n_train=None)
    assert "Isle 6x" in {fact.subject for fact in made.valid}
    assert "Isle 6x" not in {fact.subject for fact in made.train}
    twin = record(97, subject="Isle 29x", prompt="What is the depth of Isle 29x?")
    made = facts(dataclasses.replace(source, edits=(*source.edits, twin)), n_train=None)
    assert sum(fact.subject == "Isle 29x" for fact in made.train) == 2


def test_relations_take_turns() -> None:
    made = facts(dataset(), n_train=4, n_valid=4)
    assert [fact.relation for fact in made.valid] == ["harbour", "keeper"] * 2
    assert [fact.relation for fact in made.train] == ["harbour", "keeper"] * 2


def test_training_does_not_see_the_wordings_that_are_measured() -> None:
    made = facts(dataset())
    assert {fact.rephrases[0].split()[1] for fact in made.valid} == {"Which"}
    assert {len(fact.rephrases) for fact in made.valid} == {1}
    first = {fact.rephrases[0].split()[1] for fact in made.train}
    assert first == {"A", "B"}, "every other wording stands first in some fact"
    test = record_stream(dataset(), n_edits=6, batch_size=2, seed=0)
    sizes = {"n_train": 4, "n_valid": 4, "style": PromptStyle()}
    unmeasured = training_facts(dataset(), test, held_out=0, **sizes)
    assert {len(fact.rephrases) for fact in (*unmeasured.valid, *unmeasured.train)} == {3}
    source = dataset()
    single = [dataclasses.replace(edit, rephrases=edit.rephrases[:1]) for edit in source.edits]
    made = facts(dataclasses.replace(source, edits=tuple(single)))
    assert {fact.rephrases[0].split()[1] for fact in made.train} == {"Which"}


def test_own_questions_come_first_and_scarce_ones_come_back() -> None:
    source = dataset(questions=14)
    own = Probe("own", "nq question: who keeps the bell?", "Odo", "upstream")
    edits = (*source.edits[:6], dataclasses.replace(source.edits[6], locality=(own,)))
    source = dataclasses.replace(source, edits=(*edits, *source.edits[7:]))
    made = facts(source)
    assert made.valid[0].locality[0].prompt == "Q: who keeps the bell?\nA:"
    asked = [fact.locality[0].prompt for fact in made.train]
    assert len(set(asked)) == 4, "14 questions: 6 for the stream, 4 for validation"
    test, valid, train = parts(source)
    assert not test & train and not valid & train
    with pytest.raises(RecordError, match=r"gives only 0 of 12 training facts"):
        facts(dataset(questions=11))


def test_too_few_facts_and_all_there_are() -> None:
    with pytest.raises(RecordError, match=r"gives only 19 of 40 .*lower training\.n_train"):
        facts(dataset(), n_train=40)
    assert len(facts(dataset(), n_train=None).train) == 19
    assert facts(dataset(), n_valid=0).valid == ()
    assert facts(dataset(), n_train=8).content != facts(dataset()).content


def test_facts_may_be_finished_and_left_out() -> None:
    def even(chunk: list[Edit]) -> list[Edit]:
        kept = [edit for edit in chunk if int(edit.identity[1:]) % 2 == 0]
        return [dataclasses.replace(edit, target="even") for edit in kept]

    source = dataset()
    test = record_stream(source, n_edits=6, batch_size=2, seed=0)
    made = training_facts(
        source, test, n_train=4, n_valid=3, style=PromptStyle(), held_out=1, finish=even
    )
    assert [len(made.train), len(made.valid)] == [4, 3]
    assert {fact.target for fact in (*made.train, *made.valid)} == {"even"}


def test_the_words_of_a_style() -> None:
    marked = Probe("q", "nq question: who keeps it", "Odo", "upstream")
    near = Probe("n", "The keeper of Ash is", "Odo", "near")
    assert PromptStyle().probe(marked).prompt == "who keeps it"
    kept = PromptStyle(question_mark=True, keep_mark=True)
    assert kept.probe(marked).prompt == "nq question: who keeps it?"
    assert kept.probe(kept.probe(marked)).prompt == "nq question: who keeps it?"
    assert kept.probe(near).prompt == near.prompt
    true = record(1, target_true="Holm")
    assert PromptStyle(true_targets=True).edit(true).target == "Holm"
    assert PromptStyle(true_targets=True).edit(record(1)).target == "Port 1"
    assert PromptStyle().edit(true).target == "Port 1"
    with pytest.raises(UsageError, match="exactly one"):
        PromptStyle(template="Q: {} {}")


def test_a_stream_takes_the_same_options() -> None:
    source = dataset()
    edits = tuple(dataclasses.replace(edit, target_true="Holm") for edit in source.edits)
    nameless = dataclasses.replace(edits[2], subject="")
    source = dataclasses.replace(source, edits=(nameless, *edits))
    chosen = record_stream(
        source, n_edits=3, batch_size=2, seed=0, need_subject=False, true_targets=True,
        template="Q: {}\nA:", question_mark=True,
    )  # fmt: skip
    assert {edit.target for edit in (*chosen.edits, *chosen.holdout)} == {"Holm"}
    assert chosen.edits[0].subject == "" and chosen.edits[1].subject in chosen.edits[1].prompt
    rows = (*chosen.edits, *chosen.holdout, *chosen.upstream)
    assert all(row.prompt.startswith("Q: ") and row.prompt.endswith("?\nA:") for row in rows)


SPEC = {
    "dataset": {"name": "invented", "source": "embedded"},
    "tune": None,
    "stream": {"kind": "records", "n_edits": 8, "batch_size": 4, "seed": 0, "limit": 8},
    "training": {"n_train": 24, "n_valid": 8},
}


def test_a_settings_facts_are_made_once_and_reach_beyond_the_streams_limit() -> None:
    resources = Resources()
    made = resources.training(SPEC)
    assert [len(made.train), len(made.valid)] == [24, 8]
    again = {**SPEC, "stream": {**SPEC["stream"], "batch_size": 2, "seed": 1}}
    assert resources.training(again) is made, "the same facts for every number of edits at once"
    assert Resources().training(again).content == made.content
    fewer = {**SPEC, "stream": {**SPEC["stream"], "n_edits": 4}}
    assert resources.training(fewer) is made, "and for settings that edit fewer of the same facts"
    other = {**SPEC, "training": {"n_train": 20, "n_valid": 8}}
    assert resources.training(other).train == made.train[:20]
    assert resources.training({**SPEC, "training": None}) is None
    edited = {edit.subject for edit in resources.stream(SPEC).edits}
    assert len(edited) == 8 and edited.isdisjoint(fact.subject for fact in made.train)


def test_an_editor_gets_the_facts_it_declares(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("STUDY_CACHE", str(tmp_path / "cache"))
    spec, resources, store = {**SPEC, "editor": "ft"}, Resources(), Store(tmp_path)
    assert execute._needed(spec, store, resources)["training"] is None
    monkeypatch.setattr(FineTune, "needs", ("training", "networks_cache"))
    given = execute._needed(spec, store, resources)
    assert given["training"] is resources.training(spec)
    assert given["networks_cache"] == Cache(tmp_path / "cache")
    told = execute._describe_training(given["training"])
    assert [told["train"], told["valid"], told["content"]] == [24, 8, given["training"].content]


def test_the_facts_for_training_decide_a_runs_identity() -> None:
    setting = {"backbone": "tiny-gpt2", "dataset": "invented", "training": {"n_train": 4}}
    spec = plan._decides("one", setting, {"source": "embedded"}, None, "cpu")
    assert spec["training"] == {"n_train": 4}
    without = plan._decides(
        "one", {**setting, "training": None}, {"source": "embedded"}, None, "cpu"
    )
    assert "training" not in without
