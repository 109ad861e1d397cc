"""Teacher-forced scores of answers: whole passes, competitors, and passes that are kept."""

import math

import pandas as pd
import pytest
import torch

from lib.backbones.backbone import Backbone
from lib.backbones.encoding import answer_ids, prompt_ids
from lib.backbones.passes.kept import Kept
from lib.backbones.sources import loading
from lib.data.records import SUBSETS
from lib.editors.finetune import FineTune
from lib.evaluation import evaluator
from lib.evaluation.evaluator import Evaluator, Protocol
from tests.conftest import CAUSAL, make
from tests.data.test_streams import quick, run


class SeesTarget(FineTune):
    """FT that asks for whole passes although it treats all tokens alike."""

    scope_sees_target = True


@pytest.mark.parametrize("block", [0, 3])
@pytest.mark.parametrize("name", CAUSAL)
def test_a_whole_pass_equals_the_continuation_without_a_scope(name: str, block: int) -> None:
    found = []
    for whole in (False, True):
        backbone = loading.load(name)
        editor = make("ft", backbone, site={"part": "mlp_out", "block": block})
        if whole:
            editor.__class__ = SeesTarget
        found.append(run(editor, quick(), Protocol(max_new_tokens=3, evaluation_batch=4))[0])
    plain, whole = found
    assert plain["prompt_accuracy"].equals(plain["answer_accuracy"])
    exact = ["answer_accuracy", "answer_agreement", "prompt_accuracy", "prefers_target", "nll"]
    pd.testing.assert_frame_equal(plain[exact], whole[exact])
    close = ["answer_nll", "other_nll"]  # other padding, other sums: rounding of float32
    pd.testing.assert_frame_equal(plain[close], whole[close], rtol=1e-4)
    assert not plain[close].equals(whole[close])


def slow_nll(backbone: Backbone, prompt: str, answer: str) -> float:
    """Mean NLL of an answer by a plain pass over one unpadded row, in float64."""
    ids, head = answer_ids(backbone, answer), prompt_ids(backbone, prompt)
    with torch.no_grad():
        if backbone.family.kind == "seq2seq":
            start = [backbone.model.config.decoder_start_token_id, *ids[:-1]]
            logits = backbone.model(
                input_ids=torch.tensor([head]), decoder_input_ids=torch.tensor([start])
            ).logits[0]
        else:
            row = torch.tensor([[*head, *ids]])
            logits = backbone.model(input_ids=row).logits[0, len(head) - 1 : -1]
    likely = logits.double().log_softmax(dim=-1)
    return -sum(float(likely[i, token]) for i, token in enumerate(ids)) / len(ids)


def test_answers_and_their_competitors_equal_a_slow_computation(generator: Backbone) -> None:
    editor, chosen = make("ft", generator), quick()
    evaluator = Evaluator(editor, chosen, Protocol(max_new_tokens=2, evaluation_batch=4))
    evaluator.score_unedited()
    editor.edit(chosen.edits)
    competing = {row.record: row.other for s in SUBSETS for b in evaluator.batches[s]
                 for row in b.rows}  # fmt: skip
    records = [r for subset in SUBSETS for r in evaluator.records(subset, "end", 5)]
    for record in records:
        other = competing[record["record"]]
        target = slow_nll(generator, record["prompt"], record["target"])
        assert record["answer_nll"] == pytest.approx(target, rel=1e-4)
        if not other:
            assert math.isnan(record["other_nll"]) and math.isnan(record["prefers_target"])
            continue
        rival = slow_nll(generator, record["prompt"], other)
        assert record["other_nll"] == pytest.approx(rival, rel=1e-4)
        assert record["prefers_target"] == float(target < rival)
    assert {bool(competing[record["record"]]) for record in records} == {True, False}


def test_an_unedited_backbone_agrees_with_itself(generator: Backbone) -> None:
    editor = make("ft", generator)
    records, _ = run(editor, quick(n_edits=2), Protocol(max_new_tokens=2))
    assert (records[records["moment"] == "before"]["answer_agreement"] == 1.0).all()


def test_passes_that_find_no_room_change_nothing(generator: Backbone, monkeypatch) -> None:
    protocol = Protocol(max_new_tokens=3, evaluation_batch=4)
    kept = run(make("ft", generator), quick(), protocol)[0]
    other = loading.load(generator.name)
    monkeypatch.setattr(evaluator, "Kept", lambda: Kept(limit=0))
    pd.testing.assert_frame_equal(run(make("ft", other), quick(), protocol)[0], kept)


def test_passes_of_earlier_runs_make_room() -> None:
    backbone, kept = loading.load("tiny-gpt2"), Kept()
    first = Evaluator(make("ft", backbone), quick(), Protocol(max_new_tokens=2), kept=kept)
    first.score_unedited()
    assert kept.held == sum(batch.bytes for batch in kept.prompts.values()) > 0
    kept.limit = kept.held
    editor = make("ft", backbone, site={"part": "mlp_out", "block": 1})
    second = Evaluator(editor, quick(), Protocol(max_new_tokens=2), kept=kept)
    second.score_unedited()
    assert len(kept.prompts) >= len(second.batches)
    assert kept.held == sum(batch.bytes for batch in kept.prompts.values()) <= kept.limit
