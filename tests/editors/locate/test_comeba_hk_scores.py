"""What is recorded about COMEBA-HK's edits: the parity checks 15 and 16 of section 12, and the
scores of the official evaluation (section 6)."""

import copy
from typing import Any

import pytest

from lib.backbones.backbone import Backbone
from lib.backbones.encoding import answer_ids
from lib.backbones.sources import loading
from lib.data.records import Edit, Probe, Stream
from lib.editors.base import Editor
from lib.evaluation.evaluator import Evaluator, Protocol
from lib.evaluation.protocol import run_sequence
from tests.editors.locate.locate_cases import (
    FIRST,
    LAYERS,
    SECOND,
    as_edits,
    editor_of,
    oracle_of,
    weight_of,
)

pytest_plugins = ("tests.editors.locate.locate_fixtures",)
pytestmark = pytest.mark.usefixtures("statistics_cache")

ONE_TOKEN = ("the", "a", "of", "in")
EVERY = Protocol(checkpoint_every=1, max_new_tokens=3)


def stream(edits: list[Edit]) -> Stream:
    """Batches of two edits, with a rephrase and a near question of each."""
    own = tuple(range(len(edits)))
    return Stream(
        name="invented",
        edits=tuple(edits),
        batch_size=2,
        holdout=tuple(
            Edit(f"{e.identity}#1", f"People know that {e.prompt}", e.target, e.subject)
            for e in edits
        ),
        near=tuple(
            Probe(f"near {e.identity}", f"North of {e.prompt}", "Wick", "near") for e in edits
        ),
        owners={"holdout": own, "near": own, "upstream": ()},
    )


def run(editor: Editor, chosen: Stream) -> tuple[list[dict], list[dict]]:
    """All records of a run, and those of the first checkpoint as they were when written."""
    rows: list[dict[str, Any]] = []
    kept: list[dict[str, Any]] = []

    def after_batch(number: int) -> None:
        if number == 1:
            kept.extend(copy.deepcopy([r for r in rows if r["moment"] in ("checkpoint", "end")]))

    run_sequence(
        editor,
        chosen,
        EVERY,
        Evaluator(editor, chosen, EVERY),
        write_record=rows.append,
        write_step=lambda step: None,
        after_batch=after_batch,
    )
    return rows, kept


def edits_of(causal: Backbone) -> list[Edit]:
    """Four edits whose answers have one, two and more tokens."""
    words = [word for word in ONE_TOKEN if len(answer_ids(causal, word)) == 1]
    targets = (words[0], f"{words[0]} {words[1]}", "Port Amsel", words[1])
    requests = (*FIRST, SECOND[1])
    return as_edits([r._replace(target=t) for r, t in zip(requests, targets, strict=True)])


def test_15_scores_are_those_of_the_official_evaluation(causal: Backbone) -> None:
    """One pass over prompt and answer, the answer's tokens inside the scope statistics."""
    editor = editor_of("comeba_hk", causal, tolerance=1e-4)
    reference = oracle_of(editor)
    rows, _ = run(editor, stream(edits_of(causal)))
    assert all(row["answer_agreement"] == 1.0 for row in rows if row["moment"] == "before")
    moved = 0
    for moment in ("before", "end"):
        if moment == "end":
            reference.W = {layer: weight_of(editor, layer) for layer in LAYERS}
            reference.alpha = {layer: editor.hooks[layer].alpha - 1e-4 for layer in LAYERS}
        for row in (row for row in rows if row["moment"] == moment):
            prompt, answer = reference.encode(row["prompt"]), answer_ids(causal, row["target"])
            logits = reference.logits(row["prompt"], answer)
            place = slice(len(prompt) - 1, -1)
            argmax = logits[place].argmax(dim=-1).tolist()
            hits = [a == b for a, b in zip(argmax, answer, strict=True)]
            assert row["answer_accuracy"] == pytest.approx(sum(hits) / len(hits))
            log_p = logits[place].log_softmax(dim=-1)
            nll = -sum(log_p[i, token].item() for i, token in enumerate(answer)) / len(answer)
            assert row["answer_nll"] == pytest.approx(nll, abs=1e-4)
            if len(answer) == 1:
                assert row["answer_accuracy"] in (0.0, 1.0)
                alone = reference.logits(row["prompt"])[-1].argmax().item()
                assert row["prompt_accuracy"] == float(alone == answer[0])
            moved += row["answer_agreement"] < 1.0
    assert moved > 0


def test_16_an_earlier_checkpoint_does_not_change_afterwards() -> None:
    """The official loop reports the last model at every step (notes, section 3, number 8)."""
    edits = edits_of(loading.load("tiny-gptj"))
    rows, kept = run(editor_of("comeba_hk", loading.load("tiny-gptj")), stream(edits))
    early = [row for row in rows if row["moment"] == "checkpoint" and row["n_edits"] == 2]
    late = [row for row in rows if row["moment"] == "end"]
    assert [repr(row) for row in early] == [repr(row) for row in kept]
    name = "answer_nll"
    assert any(a[name] != b[name] for a, b in zip(early, late, strict=True))
    # A run that ends after the first batch sees the same.
    short, _ = run(editor_of("comeba_hk", loading.load("tiny-gptj")), stream(edits[:2]))
    alone = {(row["subset"], row["record"]): row for row in short if row["moment"] == "end"}
    common = [row for row in early if (row["subset"], row["record"]) in alone]
    assert len(common) == len(alone) == 6
    for row in common:
        other = alone[row["subset"], row["record"]]
        assert row["prediction"] == other["prediction"]
        assert row[name] == pytest.approx(other[name], abs=1e-5)
