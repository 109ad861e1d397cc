"""Scores of the protocol for MALMEN and MEND: parity check 17 of the study's notes, and ES, GS and
LS of every batch against the slow reference. Also what the editors report about themselves."""

import copy
from typing import Any

import pytest
import torch

from lib.backbones.passes.fact_passes import edit_pairs, rephrase_pairs, unrelated_pairs
from lib.backbones.sources import loading
from lib.data.records import Edit, Stream
from lib.data.training import TrainingFacts
from lib.editors.hypernet.malmen import Malmen
from lib.editors.hypernet.training import validate
from lib.evaluation.evaluator import Evaluator, Protocol
from lib.evaluation.protocol import run_sequence
from tests.editors.hypernet.malmen_cases import editor_of, facts_for, gap, oracle_of, paths
from tests.editors.hypernet.reference_hypernetwork import ridge_shift, summed_shift, wanted

NAMES = ("tiny-gpt2", "tiny-llama", "tiny-t5", "tiny-bert")


def stream_of(facts: tuple[Edit, ...], batch_size: int) -> Stream:
    """The facts with one rephrase and one unrelated prompt each."""
    owners = tuple(range(len(facts)))
    return Stream(
        name="invented",
        edits=facts,
        batch_size=batch_size,
        holdout=tuple(
            Edit(f"{e.identity}#1", e.rephrases[0], e.target, e.subject, relation=e.relation)
            for e in facts
        ),
        upstream=tuple(fact.locality[0] for fact in facts),
        owners={"holdout": owners, "upstream": owners, "near": ()},
    )


def scores(editor: Malmen, stream: Stream) -> dict[tuple[str, str, int], float]:
    """Mean answer accuracy by moment, subset and batch (before: -1)."""
    protocol = Protocol(max_new_tokens=2, evaluation_batch=3, rounds="single")
    evaluator = Evaluator(editor, stream, protocol)
    evaluator.score_unedited()
    rows: list[dict[str, Any]] = []
    run_sequence(
        editor,
        stream,
        protocol,
        evaluator,
        write_record=rows.append,
        write_step=lambda row: None,
        after_batch=lambda number: None,
    )
    found: dict[tuple[str, str, int], list[float]] = {}
    for row in rows:
        batch = -1 if row["moment"] == "before" else row["batch"]
        found.setdefault((row["moment"], row["subset"], batch), []).append(row["answer_accuracy"])
    return {key: sum(values) / len(values) for key, values in found.items()}


@pytest.mark.parametrize("name", NAMES)
def test_17_scores_before_and_after_each_batch_equal_plain_accuracies(name: str) -> None:
    """LS is accuracy on the gold unrelated answers, and before an edit no editor's business."""
    backbone = loading.load(name)
    facts = facts_for(backbone, 6)
    stream = stream_of(facts, batch_size=4)
    before = {}
    for kind in ("malmen", "mend"):
        editor = editor_of(kind, backbone)
        reference = oracle_of(editor)
        found = scores(editor, stream)
        for number, batch in enumerate([(), *stream.batches()], start=-1):
            moment, chosen = ("own", batch) if batch else ("before", facts)
            shifts = reference.shifts(batch) if batch else {}
            weights = {path: reference.original[path] + S for path, S in shifts.items()}
            for subset, pairs in (
                ("edits", edit_pairs(chosen)),
                ("holdout", rephrase_pairs(chosen)),
                ("upstream", unrelated_pairs(chosen)),
            ):
                expected = reference.accuracy(pairs, weights)
                assert found[moment, subset, number] == pytest.approx(expected, abs=1e-6)
        before[kind] = {key: value for key, value in found.items() if key[0] == "before"}
        editor.close()
    assert before["malmen"] == before["mend"]


@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-t5", "tiny-bert"])
def test_validation_edits_chunk_by_chunk_and_leaves_no_trace(name: str) -> None:
    """7 facts, 3 at a time: two chunks, each on the unedited backbone; the seventh is left out."""
    backbone = loading.load(name)
    facts = facts_for(backbone, 7)
    data = TrainingFacts("invented", facts[:1], facts)
    editor = editor_of("malmen", backbone, resources={"training": data})
    reference, before = oracle_of(editor), copy.deepcopy(editor.network.state_dict())
    expected: dict[str, list[float]] = {}
    for chunk in (facts[:3], facts[3:6]):
        shifts = reference.shifts(chunk)
        weights = {path: reference.original[path] + S for path, S in shifts.items()}
        for key, pairs in (
            ("valid_ES", edit_pairs(chunk)),
            ("valid_GS", rephrase_pairs(chunk)),
            ("valid_LS", unrelated_pairs(chunk)),
        ):
            expected.setdefault(key, []).append(reference.accuracy(pairs, weights))
    found = validate(editor, 3)
    assert found == {key: pytest.approx(sum(two) / 2, abs=1e-6) for key, two in expected.items()}
    after = editor.network.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)
    for path in paths(editor):
        weight = reference.turn(path, backbone.model.get_submodule(path).weight)
        assert torch.equal(weight.double(), reference.original[path])


@pytest.mark.parametrize("kind", ["malmen", "mend"])
def test_reported_residuals_are_those_of_the_shifts(kind: str) -> None:
    """How far K S is from D: for the editor's own shift, for the sum, for the ridge solution."""
    backbone = loading.load("tiny-llama", dtype=torch.float64)
    editor, facts = editor_of(kind, backbone, tokens="answer"), facts_for(backbone, 4)
    reference = oracle_of(editor)
    editor.edit(facts)
    stream = stream_of(facts, batch_size=4)
    rows = {row["path"]: row for row in editor.observe(stream) if row["kind"] == "module"}
    assert list(rows) == paths(editor)
    for path, (K, G) in reference.cache(facts, learn=False).items():
        net = reference.networks[path]
        module = net.paths.index(path)
        eta, ridge = net.eta[module].detach(), net.alpha[module].detach().exp()
        K_, G_ = (side.detach() for side in net.pseudo(K, G, module))
        D = wanted(eta, K, K_, G_)
        shifts = {"summed": summed_shift(eta, K_, G_), "solved": ridge_shift(K, D, ridge)}
        own = shifts["solved" if kind == "malmen" else "summed"]
        row = rows[path]
        assert row["rows"] == len(K)
        assert row["eta"] == pytest.approx(float(eta))
        assert row["ridge"] == pytest.approx(float(ridge))
        assert row["residual"] == pytest.approx(gap(K @ own, D), rel=1e-6)
        assert row["shift_norm"] == pytest.approx(float(own.norm()), rel=1e-6)
        for name, S in shifts.items():
            assert row[f"{name}_residual"] == pytest.approx(gap(K @ S, D), rel=1e-6)
            assert row[f"{name}_norm"] == pytest.approx(float(S.norm()), rel=1e-6)
        assert row["solved_residual"] < 1.0
