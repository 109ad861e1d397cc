"""The shared pass over prompts equals `generate` and a full forward pass."""

from collections import defaultdict

import pytest
import torch
from torch.nn import functional

from lib.backbones.backbone import Backbone
from lib.backbones.encoding import IGNORED, encode
from lib.backbones.passes import decoding
from lib.backbones.passes.logits import target_logits
from lib.backbones.passes.prefix import FrozenPrefix
from lib.evaluation.evaluator import Evaluator, Protocol
from lib.evaluation.protocol import run_sequence
from lib.metrics.scores import f1_ids
from tests.conftest import edits, generate, make, stream

PROMPTS = [edit.prompt for edit in edits()]
TARGETS = [edit.target for edit in edits()]


def continuation(backbone: Backbone, first: int) -> decoding.Continuation:
    prefix = FrozenPrefix(backbone, first)
    return decoding.Continuation(
        backbone, prefix, decoding.prepare(backbone, prefix, PROMPTS, TARGETS)
    )


@pytest.mark.parametrize("first", [0, 2])
def test_greedy_equals_generate(generator: Backbone, first: int) -> None:
    ids = continuation(generator, first).greedy(6)
    texts = generator.tokenizer.batch_decode(ids, skip_special_tokens=True)
    assert texts == generate(generator, PROMPTS, tokens=6)


@pytest.mark.parametrize("first", [0, 2])
def test_scores_equal_a_full_forward_pass(generator: Backbone, first: int) -> None:
    scores = continuation(generator, first).score()
    batch = encode(generator, PROMPTS, TARGETS)
    with torch.no_grad():
        logits, labels, rows = target_logits(generator, batch)
    each = functional.cross_entropy(logits, labels, reduction="none")
    for row in range(len(PROMPTS)):
        mine = rows == row
        assert scores.nll[row] == pytest.approx(each[mine].mean().item(), rel=1e-4)
        hits = (logits[mine].argmax(-1) == labels[mine]).float().mean().item()
        assert scores.token_accuracy[row] == pytest.approx(hits)


@pytest.mark.parametrize("first", [0, 2])
def test_other_answers_are_scored_from_the_same_pass(generator: Backbone, first: int) -> None:
    prefix = FrozenPrefix(generator, first)
    others = [TARGETS[1], "", TARGETS[0], "Wick", "", "Old Heron Quay"]
    batch = decoding.prepare(generator, prefix, PROMPTS, TARGETS, others=others)
    onward = decoding.Continuation(generator, prefix, batch)
    before = onward.score()
    scores = onward.score(others=True)
    assert onward.score() == before
    swapped = [other or target for other, target in zip(others, TARGETS, strict=True)]
    again = decoding.prepare(generator, prefix, PROMPTS, swapped)
    expected = decoding.Continuation(generator, prefix, again).score().without(generator.eos_id)
    for row, other in enumerate(others):
        if other:
            assert scores.ids[row] == expected.ids[row]
            assert scores.argmax[row] == expected.argmax[row]
            assert scores.token_nll[row] == pytest.approx(expected.token_nll[row], rel=1e-4)
        else:
            assert scores.token_nll[row] == ()


def test_an_answer_is_its_target_without_the_end_mark(generator: Backbone) -> None:
    scores = continuation(generator, 2).score()
    answers = scores.without(generator.eos_id)
    for row, target in enumerate(TARGETS):
        assert list(scores.ids[row]) == decoding.target_ids(generator, target)
        assert list(answers.ids[row]) == decoding.answer_ids(generator, target)
        assert len(answers.token_nll[row]) == len(answers.argmax[row]) == len(answers.ids[row])
    assert answers.without(generator.eos_id) == answers


def test_decoding_after_scoring_is_unchanged(generator: Backbone) -> None:
    onward = continuation(generator, 2)
    first = onward.greedy(6)
    onward.score()
    assert onward.greedy(6) == first


def test_label_positions_equal_hugging_faces_logits(generator: Backbone) -> None:
    batch = encode(generator, PROMPTS, TARGETS)
    with torch.no_grad():
        ours, labels, _ = target_logits(generator, batch)
        if generator.family.kind == "seq2seq":
            full = generator.model(**batch.inputs(), labels=batch.labels).logits
            expected = full[batch.labels != IGNORED]
        else:
            full = generator.model(**batch.inputs(), position_ids=batch.positions()).logits
            expected = full[:, :-1][batch.labels[:, 1:] != IGNORED]
    assert torch.allclose(ours, expected, atol=1e-5)
    assert len(labels) == sum(len(decoding.target_ids(generator, t)) for t in TARGETS)


@pytest.fixture(scope="module")
def bases() -> dict[str, dict]:
    """Scores of the unedited backbones by name, for evaluators to share as those of a study do."""
    return defaultdict(dict)


@pytest.mark.parametrize("kind", ["melo", "grace", "lora", "ft"])
def test_a_decoded_match_is_all_tokens_right_when_forced(
    kind: str, generator: Backbone, bases: dict[str, dict]
) -> None:
    """Greedy decoding gives the target exactly if every teacher-forced argmax is right; an
    evaluator that mixed up rows, routes or caches would break this."""
    editor = make(kind, generator, steps=40)
    records: list[dict] = []
    protocol = Protocol(checkpoint_every=1, max_new_tokens=24, evaluation_batch=3)
    run_sequence(
        editor,
        stream(),
        protocol,
        Evaluator(editor, stream(), protocol, before=bases[generator.name]),
        write_record=records.append,
        write_step=lambda step: None,
        after_batch=lambda done: None,
    )
    special = {generator.pad_id, generator.eos_id}
    if kind in ("lora", "ft") and generator.name in ("tiny-gpt2", "tiny-gptj", "tiny-t5"):
        assert any(r["token_accuracy"] == 1.0 for r in records)  # else nothing is shown below
    for record in records:
        gold = decoding.target_ids(generator, record["target"])
        perfect = record["token_accuracy"] == 1.0
        assert perfect == (record["exact_match"] == 1.0 and record["f1_ids"] == 1.0)
        assert f1_ids(gold, gold, special) == 1.0


def test_an_unchanged_route_is_not_computed_again(generator: Backbone, monkeypatch) -> None:
    editor = make("melo", generator)
    computed = []
    plain = Evaluator._compute
    monkeypatch.setattr(
        Evaluator, "_compute", lambda self, *a: computed.append(a[1]) or plain(self, *a)
    )
    protocol = Protocol(checkpoint_every=1, max_new_tokens=4, evaluation_batch=3)
    evaluator = Evaluator(editor, stream(), protocol)
    run_sequence(
        editor,
        stream(),
        protocol,
        evaluator,
        write_record=lambda record: None,
        write_step=lambda step: None,
        after_batch=lambda done: None,
    )
    # 3 edit batches, 2 holdout, 1 upstream, 1 near: each once unedited, then once per new routing
    assert len(computed) <= 7 + 3 + 2 * 3 + 2 * 3
    assert len(computed) == len(set(map(id, computed)))
