"""Streams of whole records: owners, single rounds, whole passes and competing answers."""

import dataclasses

import pandas as pd
import pytest

from lib.backbones.sources import loading
from lib.data.records import SUBSETS, Dataset, Edit, Probe, Stream
from lib.data.streams import record_stream, stream_of
from lib.errors import RecordError, UsageError
from lib.evaluation import prompts
from lib.evaluation.evaluator import Evaluator, Protocol
from lib.evaluation.protocol import run_sequence
from lib.storage.fingerprints import content_hash
from tests.conftest import FACTS, edits, make

TRUE = ("Holm", "Tavik Old Town", "Wick", "Wick", "Lantern", "Holm")


def probes(subject: str, true: str) -> tuple[Probe, ...]:
    """Two neighbours, a distractor and a near question of one record."""
    return (
        Probe(f"{subject}:n0", f"The ferry of East {subject} is based in", true, "neighbour"),
        Probe(f"{subject}:n1", f"The ferry of {subject} Skerry is based in", true, "neighbour"),
        Probe(f"{subject}:d0", f"Selby. The ferry of East {subject} is in", true, "distractor"),
        Probe(f"{subject}:q", f"Where does the ferry of West {subject} lie?", true, "near"),
    )


def dataset(count: int = 6, pool: int = 6) -> Dataset:
    """Records in CounterFact's form and a pool of upstream questions, one of them twice."""
    found = tuple(
        Edit(
            identity=f"r{i}",
            prompt=f"The ferry of {subject} is based in",
            target=target,
            subject=subject,
            rephrases=(f"{subject}'s ferry sails from", "The island's ferry sails from"),
            locality=probes(subject, true),
            relation="harbour",
            target_true=true,
        )
        for i, ((subject, target), true) in enumerate(zip(FACTS, TRUE, strict=True))
    )
    questions = [Probe(f"sky{i}", f"what colour is sky {i}?", "blue", "upstream") for i in range(9)]
    return Dataset("invented", found[:count], upstream=(questions[0], *questions[:pool]))


def quick(batch_size: int = 2, n_edits: int = 5, **options: object) -> Stream:
    """A short stream of records; the last batch is shorter."""
    return record_stream(dataset(), n_edits=n_edits, batch_size=batch_size, seed=0, **options)


def run(editor: object, chosen: Stream, protocol: Protocol) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Records and steps of one run from start to end."""
    records, steps = [], []
    run_sequence(
        editor,
        chosen,
        protocol,
        Evaluator(editor, chosen, protocol),
        write_record=records.append,
        write_step=steps.append,
        after_batch=lambda done: None,
    )
    return pd.DataFrame(records), pd.DataFrame(steps)


# -- the stream ------------------------------------------------------------------------------


def test_seed_0_keeps_the_file_order_and_others_shuffle_the_same_records() -> None:
    first, again = quick(), quick()
    assert [edit.relation for edit in first.edits] == ["r0", "r1", "r2", "r3", "r4"]
    assert first.content == again.content
    other = record_stream(dataset(), n_edits=5, batch_size=2, seed=3)
    assert {e.identity for e in other.edits} == {e.identity for e in first.edits}
    assert [e.identity for e in other.edits] != [e.identity for e in first.edits]


@pytest.mark.parametrize("seed", [0, 3])
def test_every_row_belongs_to_its_edit(seed: int) -> None:
    chosen = record_stream(dataset(), n_edits=5, batch_size=2, seed=seed, max_rephrases=2)
    for index, edit in zip(chosen.owners["holdout"], chosen.holdout, strict=True):
        assert edit.relation == chosen.edits[index].relation
        assert edit.target == chosen.edits[index].target
        assert edit.subject == (chosen.edits[index].subject if edit.prompt[:3] != "The" else "")
    for index, probe in zip(chosen.owners["near"], chosen.near, strict=True):
        assert chosen.edits[index].subject in probe.prompt and probe.kind == "neighbour"
    assert [len(chosen.holdout), len(chosen.near), len(chosen.upstream)] == [10, 10, 5]
    assert len({probe.prompt for probe in chosen.upstream}) == 5
    assert chosen.owners["upstream"] == (0, 1, 2, 3, 4)


def test_a_rephrase_that_repeats_its_prompt_is_kept() -> None:
    source = dataset()
    prompt = source.edits[1].prompt
    same = dataclasses.replace(source.edits[1], rephrases=(prompt, prompt))
    changed = dataclasses.replace(source, edits=(source.edits[0], same, *source.edits[2:]))
    chosen = record_stream(changed, n_edits=4, batch_size=2, seed=0, max_rephrases=2)
    assert chosen.owners["holdout"] == (0, 0, 1, 2, 2, 3, 3)
    assert (chosen.holdout[2].prompt, chosen.holdout[2].identity) == (prompt, "r1#1")


def test_a_records_own_question_comes_before_the_pool() -> None:
    source = dataset()
    own = Probe("own", source.upstream[2].prompt, "blue", "upstream")
    marked = Probe("marked", f"nq question: {own.prompt}?", "blue", "upstream")
    second = dataclasses.replace(source.edits[1], locality=(own,))
    changed = dataclasses.replace(source, edits=(source.edits[0], second, *source.edits[2:]))
    chosen = record_stream(changed, n_edits=4, batch_size=2, seed=0)
    assert [probe.identity for probe in chosen.upstream] == ["sky0", "own", "sky2", "sky3"]
    assert chosen.owners["near"] == (0, 0, 2, 2, 3, 3)
    third = dataclasses.replace(source.edits[2], locality=(marked,))
    changed = dataclasses.replace(source, edits=(third,))
    (probe,) = record_stream(changed, n_edits=1, batch_size=1, seed=0).upstream
    assert probe.prompt == f"{own.prompt}?"


def test_records_without_a_subject_and_repeated_subjects() -> None:
    source = dataset()
    nameless = dataclasses.replace(source.edits[0], subject="", identity="nameless")
    twice = dataclasses.replace(source.edits[1], target="Wick", identity="twice")
    changed = dataclasses.replace(source, edits=(nameless, source.edits[1], twice, *source.edits))
    plain = record_stream(changed, n_edits=4, batch_size=2, seed=0)
    assert [edit.relation for edit in plain.edits] == ["r1", "twice", "r0", "r1"]
    single = record_stream(changed, n_edits=4, batch_size=2, seed=0, dedup_subjects=True)
    assert [edit.relation for edit in single.edits] == ["r1", "r0", "r2", "r3"]


def test_too_little_data_is_an_error_that_names_the_remedy() -> None:
    with pytest.raises(RecordError, match=r"gives only 6 records with a subject.*lower n_edits"):
        record_stream(dataset(), n_edits=7, batch_size=2, seed=0)
    with pytest.raises(RecordError, match="brings 4 upstream questions for 5 places"):
        record_stream(dataset(pool=4), n_edits=5, batch_size=2, seed=0)
    chosen = record_stream(dataset(pool=0), n_edits=5, batch_size=2, seed=0, n_upstream=0)
    assert chosen.upstream == ()


def test_owners_are_content_and_must_fit() -> None:
    plain = Stream("s", edits(2), 2, holdout=edits(2))
    before = [plain.edits, plain.batch_size, plain.holdout, plain.upstream, plain.near]
    assert plain.content == content_hash(before)
    owned = dataclasses.replace(plain, owners={"holdout": (1, 0)})
    assert owned.content != plain.content
    assert owned.content != dataclasses.replace(plain, owners={"holdout": (0, 1)}).content
    with pytest.raises(RecordError, match="2 holdout rows"):
        dataclasses.replace(plain, owners={"holdout": (0,)})
    with pytest.raises(RecordError, match="below 2"):
        dataclasses.replace(plain, owners={"holdout": (0, 2)})


# -- rows ------------------------------------------------------------------------------------


def test_rows_are_scored_with_the_batch_they_belong_to() -> None:
    source = dataset()
    bare = dataclasses.replace(source.edits[2], locality=(), rephrases=())
    bare2 = dataclasses.replace(source.edits[3], locality=(), rephrases=())
    changed = dataclasses.replace(source, edits=(*source.edits[:2], bare, bare2, *source.edits[4:]))
    chosen = record_stream(changed, n_edits=6, batch_size=2, seed=0)
    near = prompts.row_batches(chosen, "near", 3)
    assert [(batch.number, len(batch.rows)) for batch in near] == [(0, 3), (0, 1), (2, 3), (2, 1)]
    assert all(row.edit_index // 2 == batch.number for batch in near for row in batch.rows)
    backbone = loading.load("tiny-gpt2")
    evaluator = Evaluator(make("ft", backbone), chosen, Protocol(max_new_tokens=2, rounds="single"))
    assert list(evaluator.records("holdout", "own", 2, only=1)) == []
    own = list(evaluator.records("near", "own", 2, only=2))
    assert [record["edit_index"] for record in own] == [4, 4, 5, 5]
    assert {record["batch"] for record in own} == {2}


def test_shared_pools_keep_their_batches() -> None:
    plain = Stream("s", edits(5), 2, holdout=edits(5))
    assert [len(batch.rows) for batch in prompts.row_batches(plain, "edits", 1)] == [2, 2, 1]
    holdout = prompts.row_batches(plain, "holdout", 4)
    assert [(batch.number, len(batch.rows)) for batch in holdout] == [(0, 4), (1, 1)]
    assert {row.edit_index for batch in holdout for row in batch.rows} == {-1}


def test_what_competes_with_the_target() -> None:
    chosen = record_stream(dataset(), n_edits=5, batch_size=5, seed=0, n_near=3)
    edited = prompts.row_batches(chosen, "edits", 9)[0].rows
    assert [row.other for row in edited] == list(TRUE[:5])
    near = prompts.row_batches(chosen, "near", 99)[0].rows
    new = {e.relation: e.target for e in chosen.edits}
    for row in near:  # a near question has no competing answer
        expected = "" if row.record.endswith(":q") else new[f"r{row.edit_index}"]
        assert row.other == expected
    assert {row.other for row in prompts.row_batches(chosen, "upstream", 99)[0].rows} == {""}
    same = dataclasses.replace(chosen.edits[0], target_true=chosen.edits[0].target)
    again = dataclasses.replace(chosen, edits=(same, *chosen.edits[1:]))
    assert prompts.row_batches(again, "edits", 9)[0].rows[0].other == ""


# -- single rounds ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ft", "melo", "grace", "lora"])
@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-t5"])
def test_single_rounds_equal_a_fresh_editor_for_every_batch(kind: str, name: str) -> None:
    chosen = quick()
    protocol = Protocol(max_new_tokens=4, evaluation_batch=3, rounds="single")
    records, steps = run(make(kind, loading.load(name)), chosen, protocol)
    assert set(records["moment"]) == {"before", "own"}
    own = records[records["moment"] == "own"].reset_index(drop=True)
    assert own[own["subset"] == "edits"]["edit_index"].tolist() == [0, 1, 2, 3, 4]
    assert own.groupby("batch")["n_edits"].unique().map(list).tolist() == [[2], [2], [1]]
    assert steps["batch"].tolist() == [0, 1, 2] and steps["n_edits"].tolist() == [2, 2, 1]
    expected = []
    for number, batch in enumerate(chosen.batches()):
        editor = make(kind, loading.load(name))
        evaluator = Evaluator(editor, chosen, protocol)
        evaluator.score_unedited()
        editor.edit(batch)
        for subset in SUBSETS:
            expected += evaluator.records(subset, "own", editor.n_edits, only=number)
    pd.testing.assert_frame_equal(own, pd.DataFrame(expected))


def test_single_rounds_need_rows_with_owners() -> None:
    editor = make("ft", loading.load("tiny-gpt2"))
    with pytest.raises(UsageError, match="kind records"):
        run(editor, Stream("s", edits(2), 2), Protocol(rounds="single"))


def test_consecutive_rounds_score_a_batchs_edits_alone_at_their_own_moment() -> None:
    editor = make("ft", loading.load("tiny-gpt2"))
    records, _ = run(editor, quick(), Protocol(max_new_tokens=2))
    assert set(records[records["moment"] == "own"]["subset"]) == {"edits"}
    end = records[records["moment"] == "end"]
    assert end.groupby("subset").size().to_dict() == {
        "edits": 5, "holdout": 5, "near": 10, "upstream": 5,
    }  # fmt: skip
    assert (end["edit_index"] >= 0).all()


@pytest.mark.parametrize("seed", [0, 3])
def test_a_shorter_run_edits_the_beginning_of_the_same_stream(seed: int) -> None:
    """Also where the order is shuffled: editors are compared on the same prompts."""
    options = {"kind": "records", "n_edits": 6, "batch_size": 2, "seed": seed}
    whole = stream_of({"stream": options}, dataset())
    first = stream_of({"stream": options | {"first": 4}}, dataset())
    assert first.edits == whole.edits[:4]
    for subset in ("holdout", "upstream", "near"):
        owned = zip(getattr(whole, subset), whole.owners[subset], strict=True)
        assert getattr(first, subset) == tuple(row for row, owner in owned if owner < 4)
    assert whole.beginning(6) is whole and first.content != whole.content
    with pytest.raises(RecordError, match="has 6 edits, not 7"):
        whole.beginning(7)


def test_questions_beside_statements_may_have_a_template_of_their_own() -> None:
    chosen = quick(n_upstream=1, upstream_template="Q: {}\nA:")
    assert all(
        p.prompt.startswith("Q: what") and p.prompt.endswith("\nA:") for p in chosen.upstream
    )
    assert chosen.edits == quick(n_upstream=1).edits and chosen.near == quick(n_upstream=1).near
    with pytest.raises(UsageError, match="exactly one"):
        quick(upstream_template="Q:")


def test_competing_answers_are_left_out_where_nobody_reads_them() -> None:
    asked = prompts.row_batches(quick(), "edits", 4)
    quiet = prompts.row_batches(quick(), "edits", 4, rivals=False)
    assert any(row.other for batch in asked for row in batch.rows)
    assert not any(row.other for batch in quiet for row in batch.rows)
    editor = make("ft", loading.load("tiny-gpt2"))
    scored, _ = run(editor, quick(), Protocol(max_new_tokens=2))
    editor = make("ft", loading.load("tiny-gpt2"))
    plain, _ = run(editor, quick(), Protocol(max_new_tokens=2, rivals=False))
    assert scored["other_nll"].notna().any() and plain["other_nll"].isna().all()
    assert plain["answer_nll"].equals(scored["answer_nll"])
