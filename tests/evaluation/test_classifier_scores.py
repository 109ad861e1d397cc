"""Scores of classifiers, large batches of edits, and runs that decode nothing."""

import math

import pandas as pd
import pytest
import torch
from torch.nn import functional

from lib.backbones.backbone import Backbone
from lib.backbones.encoding import encode
from lib.backbones.passes.decoding import Continuation, PromptBatch
from lib.backbones.sources import loading
from lib.data import datasets
from lib.data.records import SUBSETS, Stream
from lib.data.streams import record_stream
from lib.errors import RecordError
from lib.evaluation.evaluator import Evaluator, Protocol
from lib.evaluation.prompts import Row
from tests.conftest import make
from tests.data.test_streams import quick, run

WRITTEN = ["f1_ids", "f1_ids_released", "begins_with"]  # of tokens that are decoded
RIGHT = ["exact_match", "token_accuracy", "answer_accuracy", "prompt_accuracy"]
SAME = ["agreement", "answer_agreement"]


def claims(batch_size: int = 3, **options: object) -> Stream:
    """Six invented claims with rephrases and unrelated claims."""
    chosen = {"n_edits": 6, "seed": 0, "max_rephrases": 2} | options
    return record_stream(datasets.load("invented_claims"), batch_size=batch_size, **chosen)


def two_classes() -> Backbone:
    return loading.load("tiny-bert", num_labels=2)


def plain(backbone: Backbone, rows: tuple[Row, ...]) -> tuple[list[str], list[float]]:
    """Classes and losses by an ordinary forward call on the rows."""
    batch = encode(backbone, [row.prompt for row in rows], [row.target for row in rows])
    with torch.no_grad():
        logits = backbone.model(**batch.inputs()).logits
    losses = functional.cross_entropy(logits.float(), batch.labels, reduction="none")
    return [str(label) for label in logits.argmax(dim=-1).tolist()], losses.tolist()


@pytest.mark.parametrize("block", [0, 3], ids=["no prefix", "prefix"])
@pytest.mark.parametrize("edited", [False, True], ids=["zero edits", "edited"])
def test_scores_are_those_of_a_plain_forward_call(block: int, edited: bool) -> None:
    backbone, chosen = two_classes(), claims()
    editor = make("ft", backbone, site={"part": "mlp_out", "block": block})
    evaluator = Evaluator(editor, chosen, Protocol(evaluation_batch=4))
    evaluator.score_unedited()
    batches = [batch for subset in SUBSETS for batch in evaluator.batches[subset]]
    before = {row.record: label for b in batches for row, label in _labelled(backbone, b.rows)}
    if edited:
        editor.edit(chosen.edits)
    records = {r["record"]: r for s in SUBSETS for r in evaluator.records(s, "end", 6)}
    for batch in batches:
        classes, losses = plain(backbone, batch.rows)
        for row, label, loss in zip(batch.rows, classes, losses, strict=True):
            record = records[row.record]
            assert record["prediction"] == label
            assert record["nll"] == record["answer_nll"] == loss
            assert {record[name] for name in RIGHT} == {float(label == row.target)}
            assert {record[name] for name in SAME} == {float(label == before[row.record])}
            assert all(math.isnan(record[name]) for name in (*WRITTEN, "prefers_target"))
    assert any(record["agreement"] == 0.0 for record in records.values()) == edited


def _labelled(backbone: Backbone, rows: tuple[Row, ...]) -> zip:
    return zip(rows, plain(backbone, rows)[0], strict=True)


@pytest.mark.parametrize("kind", ["ft", "lora", "grace", "melo"])
def test_every_editor_of_classifiers_is_scored_in_single_rounds(kind: str) -> None:
    position = {"key_position": "last_token"} if kind == "melo" else {}
    editor = make(kind, two_classes(), **position)
    records, _ = run(editor, claims(), Protocol(evaluation_batch=8, rounds="single"))
    own = records[records["moment"] == "own"]
    assert own.groupby("subset").size().to_dict() == {"edits": 6, "holdout": 12, "upstream": 6}
    edits = own[own["subset"] == "edits"]
    assert edits["answer_accuracy"].mean() > records["answer_accuracy"].mean()
    kept = own[own["route"] == "base"]
    assert (kept["agreement"] == 1.0).all()


def test_records_have_the_columns_of_generators() -> None:
    chosen, protocol = claims(), Protocol(evaluation_batch=4)
    mine, _ = run(make("ft", two_classes(), steps=1), chosen, protocol)
    editor = make("ft", loading.load("tiny-gpt2"), steps=1)
    theirs, _ = run(editor, quick(n_edits=2), Protocol(max_new_tokens=2))
    assert list(mine.columns) == list(theirs.columns)
    assert mine.dtypes.to_dict() == theirs.dtypes.to_dict()


def test_a_target_that_is_no_class_is_named() -> None:
    chosen = record_stream(datasets.load("invented"), n_edits=2, batch_size=2, seed=0)
    with pytest.raises(RecordError, match="number from 0 to 1"):
        run(make("ft", two_classes()), chosen, Protocol())


# -- large batches ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-t5", "tiny-bert"])
def test_a_batch_of_edits_is_scored_in_pieces_that_change_nothing(name: str, monkeypatch) -> None:
    sizes, compute = [], Evaluator._compute

    def counting(self: Evaluator, batch: PromptBatch, *routes: tuple) -> list:
        sizes.append(len(batch.prompts))
        return compute(self, batch, *routes)

    def scored(size: int) -> pd.DataFrame:
        sizes.clear()
        chosen = claims(5, n_edits=5) if name == "tiny-bert" else quick(5)
        backbone = two_classes() if name == "tiny-bert" else loading.load(name)
        editor = make("ft", backbone, steps=3)
        protocol = Protocol(max_new_tokens=3, evaluation_batch=size, rounds="single")
        return run(editor, chosen, protocol)[0]

    monkeypatch.setattr(Evaluator, "_compute", counting)
    pieces = scored(2)
    assert max(sizes) == 2
    whole = scored(100)
    assert max(sizes) == 10
    losses = ["nll", "answer_nll", "other_nll"]  # other padding, other sums: rounding of float32
    pd.testing.assert_frame_equal(pieces.drop(columns=losses), whole.drop(columns=losses))
    pd.testing.assert_frame_equal(pieces[losses], whole[losses], rtol=1e-3)


# -- without decoding ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-t5"])
def test_without_decoding_only_what_is_decoded_is_missing(name: str) -> None:
    decoded, forced = (
        run(
            make("ft", loading.load(name), steps=3),
            quick(),
            Protocol(max_new_tokens=3, evaluation_batch=4, decode=decode),
        )[0]
        for decode in (True, False)
    )
    missing = ["prediction", "exact_match", "agreement", *WRITTEN]
    pd.testing.assert_frame_equal(forced.drop(columns=missing), decoded.drop(columns=missing))
    assert list(forced.columns) == list(decoded.columns)
    assert (forced["prediction"] == "").all()
    assert forced[missing[1:]].isna().all(axis=None)


def test_without_decoding_no_token_is_written(monkeypatch) -> None:
    monkeypatch.setattr(Continuation, "greedy", lambda *a: pytest.fail("it decoded"))
    run(make("ft", loading.load("tiny-gpt2"), steps=1), quick(), Protocol(decode=False))
