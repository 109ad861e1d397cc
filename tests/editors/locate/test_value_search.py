"""The value search of ROME, MEMIT and COMEBA-HK against the slow reference: the parity checks 11
and 13 of section 12."""

from dataclasses import replace

import pytest
import torch

from lib.backbones.backbone import Backbone
from lib.backbones.encoding import answer_ids, prompt_ids
from lib.backbones.passes.prefix import FrozenPrefix
from lib.editors.locate import values
from lib.editors.locate.values import value_rows
from tests.editors.locate.locate_cases import (
    CONTEXTS,
    FIRST,
    LAYERS,
    SECOND,
    as_edits,
    editor_of,
    gap,
    oracle_of,
)
from tests.editors.locate.reference_locate import Request

pytest_plugins = ("tests.editors.locate.locate_fixtures",)
pytestmark = pytest.mark.usefixtures("statistics_cache")

ALL = (*FIRST, *SECOND)


# -- 11: values ------------------------------------------------------------------------------------


def found(editor, requests):
    editor.prepare()
    return editor.find_values(editor.requests(as_edits(requests)))


def test_11_one_step_is_no_update_and_s_steps_are_s_minus_one(causal: Backbone) -> None:
    editor = editor_of("comeba_hk", causal, value_steps=1)
    start = found(editor, ALL)
    assert start.updates == [0] * len(ALL)
    assert start.first == start.last
    outputs = editor.passes(editor.requests(as_edits(ALL)), ("",)).read("block", LAYERS[-1])
    assert gap(start.values, outputs) <= 1e-6  # another padding: equal up to rounding
    editor.close()
    for factor in (0.0, 2.0):  # without a delta the KL divergence is zero
        other = editor_of("comeba_hk", causal, value_steps=5, kl_factor=factor)
        searched = found(other, ALL)
        assert searched.updates == [4] * len(ALL)
        assert searched.first == pytest.approx(start.first, abs=2e-6)
        delta = (searched.values - start.values).norm(dim=1)
        assert (delta > 0).all()
        assert (delta <= 0.75 * start.values.norm(dim=1) * (1 + 1e-6)).all()
        other.close()


@pytest.mark.parametrize(
    "changes",
    [
        {"kl_factor": 3.0, "value_weight_decay": 40.0},  # another form of either would be seen
        {"value_lr": 0.9, "value_clamp": 0.05},
        {"value_lr": 0.03, "value_weight_decay": 0.0, "stop": True},
    ],
    ids=["penalties", "clamp", "stop"],
)
def test_11_values_equal_the_reference(causal: Backbone, changes: dict, monkeypatch) -> None:
    stop = changes.pop("stop", False)
    editor = editor_of("comeba_hk", causal, **changes)
    reference = oracle_of(editor)
    slow = [reference.search(request, LAYERS[-1]) for request in SECOND]
    if stop:
        # between two steps of the first search; some others never come below, or start below
        bound = sum(slow[0].losses[2:4]) / 2
        reference.s = replace(reference.s, stop=bound)
        slow = [reference.search(request, LAYERS[-1]) for request in SECOND]
        search = replace(editor.config.search, stop_loss=bound)
        monkeypatch.setattr(type(editor.config), "search", search)
    ours = found(editor, SECOND)
    assert ours.updates == [search.updates for search in slow]
    assert ours.first == pytest.approx([search.losses[0] for search in slow], rel=1e-5)
    assert ours.last == pytest.approx([search.losses[-1] for search in slow], rel=1e-5)
    for value, search in zip(ours.values, slow, strict=True):
        assert gap(value, search.value) <= 1e-5
    if "kl_factor" in changes:
        assert max(search.kls[-1] for search in slow) > 1e-3
        assert all(search.kls[0] == 0 for search in slow)
    if "value_clamp" in changes:
        lengths = [float(s.delta.norm() / s.initial.norm()) for s in slow]
        assert max(lengths) == pytest.approx(0.05, rel=1e-6)
    if stop:
        assert ours.updates[0] == 3
        assert len(set(ours.updates)) > 1


def test_11_subjects_at_the_first_position_and_prompts_of_one_token(causal: Backbone) -> None:
    """Alone, where no row has a token before its subject, and beside longer prompts."""
    odd = (Request("A", "A", "Selby"), Request("Ash", "Ash", "a"), Request("Q is", "Q", "x y"))
    editor = editor_of("comeba_hk", causal, contexts=[])
    reference = oracle_of(editor)
    bare = oracle_of(editor)
    bare.groups, bare.contexts = [["{}"]], ["{}"]
    for contexts, oracle in ((CONTEXTS, reference), ((), bare)):
        editor.contexts = contexts
        slow = [oracle.search(request, LAYERS[-1]).value for request in odd]
        for requests in (odd[:1], odd, (*odd, FIRST[0])):
            ours = found(editor, requests).values
            for value, theirs in zip(ours[: len(odd)], slow, strict=False):
                assert gap(value, theirs) <= 1e-5


def test_values_do_not_depend_on_how_many_are_searched_at_once(causal, monkeypatch) -> None:
    editor = editor_of("memit", causal)
    together = found(editor, ALL)
    for count in (1, 3):
        monkeypatch.setattr(values, "requests_at_once", lambda *_given, count=count: count)
        apart = found(editor, ALL)
        assert apart.updates == together.updates
        assert gap(apart.values, together.values.double()) <= 1e-5


def test_as_many_are_searched_at_once_as_the_budget_holds(causal: Backbone, monkeypatch) -> None:
    editor = editor_of("memit", causal)
    editor.prepare()
    wanted = value_rows(causal, editor.requests(as_edits(ALL)), ("", *CONTEXTS))
    counts = []
    for power in range(33):
        monkeypatch.setitem(values.BUDGET, "cpu", 2**power)
        counts.append(values.requests_at_once(causal, 2, wanted))
    assert counts == sorted(counts)
    assert set(counts) > {1, len(ALL)}


def test_rows_of_the_kl_term_are_run_up_to_their_subject_only(causal: Backbone) -> None:
    editor = editor_of("memit", causal)
    editor.prepare()
    wanted = value_rows(causal, editor.requests(as_edits(ALL)), ("", *CONTEXTS))
    state = FrozenPrefix(causal, 3).record(wanted.rows.batch)
    objective = values.Objective.of(causal, 2, wanted, state)
    assert objective.essence.ids.shape == (len(ALL), 1)
    kept = torch.tensor([number % 2 == 0 for number in range(len(ALL))])
    delta = torch.randn(len(ALL), 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        all_nll, all_log_p = objective.losses(delta)
        some_nll, some_log_p = objective.keep(kept).losses(delta[kept])
    assert gap(some_nll, all_nll[kept].double()) <= 1e-6
    assert gap(some_log_p, all_log_p[kept].double()) <= 1e-6


# -- 13: labels ------------------------------------------------------------------------------------


def words_of(backbone: Backbone, tokens: int) -> str:
    """An answer of so many tokens."""
    words = ("a", "the", "of", "in", "to", "is", "on", "on the", "in the", "of the")
    return next(word for word in words if len(answer_ids(backbone, word)) == tokens)


@pytest.mark.parametrize("tokens", [1, 2])
def test_13_labels_stand_where_the_logits_predict_them(causal: Backbone, tokens: int) -> None:
    request = FIRST[0]._replace(target=words_of(causal, tokens))
    editor = editor_of("comeba_hk", causal)
    target = answer_ids(causal, request.target)
    wanted = value_rows(causal, editor.requests(as_edits([request])), ("", *CONTEXTS))
    slow = oracle_of(editor).search(request, LAYERS[-1])
    ours = torch.full_like(wanted.rows.batch.input_ids, -100)
    ours[wanted.label_row, wanted.label_column] = wanted.labels
    assert torch.equal(ours, slow.labels)
    last = wanted.rows.lengths - 1
    for row, context in enumerate(("", *CONTEXTS)):
        prompt = prompt_ids(causal, context + request.prompt)
        assert int(last[row]) == len(prompt) + tokens - 2
        assert ours[row, last[row]] == target[-1]
        assert ours[row, len(prompt) - 1] == target[0]
        ids = wanted.rows.batch.input_ids[row, : last[row] + 1].tolist()
        assert ids == prompt + target[:-1]
    assert (ours != -100).sum(dim=1).tolist() == [tokens] * 6 + [0]
    assert wanted.kl.tolist() == [False] * 6 + [True]
