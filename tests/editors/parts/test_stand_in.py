"""Rows that another model answers: in the evaluator, in ordinary calls and in `generate`."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lib.backbones.encoding import encode_prompts
from lib.backbones.sources import loading
from lib.editors import build
from lib.editors.base import UNEDITED
from lib.editors.memory.serac import Serac
from lib.editors.memory.serac_networks import edit_text
from lib.editors.parts.stand_in import SPARE, tell
from lib.errors import EditorError
from lib.evaluation.evaluator import Evaluator, Protocol
from tests.conftest import configuration, edits, generate, prompt_logits, stream
from tests.editors.memory.serac_cases import (
    FACTS,
    PROMPTS,
    TRAINING,
    counterfactual_logits,
    edited,
    routes,
    serac,
    untrained,
)  # fmt: skip


@pytest.fixture(scope="module")
def editor() -> Serac:
    """Edited; tests leave it as it is."""
    return edited()


def test_rows_in_scope_are_scored_by_the_counterfactual_model_alone(editor: Serac) -> None:
    fresh = serac()
    before = Evaluator(fresh, stream(), Protocol(max_new_tokens=4))
    before.score_unedited()
    evaluator = Evaluator(editor, stream(), Protocol(max_new_tokens=4), before=before.before)
    inside = 0
    for subset in ("edits", "holdout", "upstream", "near"):
        unedited = list(before.records(subset, "end", 0))
        for record, own in zip(evaluator.records(subset, "end", 4), unedited, strict=True):
            if record["route"] == UNEDITED:
                assert str(record | {"n_edits": 0}) == str(own)  # NaN equals itself as text
                continue
            inside += 1
            answer = editor.backbone.tokenizer(" " + record["target"])["input_ids"]
            number = int(record["route"].split()[1])
            logits = counterfactual_logits(editor, number, f"{record['prompt']} {record['target']}")
            chances = logits[-len(answer) - 1 : -1].log_softmax(dim=-1)
            nll = -chances[range(len(answer)), answer].mean().item()
            assert record["answer_nll"] == pytest.approx(nll, rel=1e-4)
            hits = (chances.argmax(dim=-1) == torch.tensor(answer)).float().mean().item()
            assert record["answer_accuracy"] == pytest.approx(hits)
    assert inside >= 6


def test_an_edit_reports_the_losses_of_both_models() -> None:
    editor = serac()
    report = editor.edit(edits(2))
    expected: list[list[torch.Tensor]] = [[], []]
    for number, edit in enumerate(edits(2)):
        text = f"{edit.prompt} {edit.target}"
        answer = editor.backbone.tokenizer(" " + edit.target)["input_ids"]
        fresh = loading.load("tiny-llama")
        ids = torch.tensor([fresh.tokenizer(fresh.prefix + text)["input_ids"]])
        with torch.no_grad():
            own = fresh.model(ids).logits[0]
        for terms, logits in zip(
            expected, (own, counterfactual_logits(editor, number, text)), strict=True
        ):
            chances = logits[-len(answer) - 1 : -1].log_softmax(dim=-1)
            terms.append(-chances[range(len(answer)), answer])
    first, last = (torch.cat(terms).mean().item() for terms in expected)
    assert report.loss_first == pytest.approx(first, rel=1e-4)
    assert report.loss_last == pytest.approx(last, rel=1e-4)
    assert report.counts == editor.counts() and report.counts["stored_floats"] == 2 * 32


@pytest.mark.parametrize("side", ["left", "right"])
def test_an_ordinary_call_gives_the_counterfactual_logits_in_scope(
    editor: Serac, side: str
) -> None:
    batch, found = encode_prompts(editor.backbone, PROMPTS, side=side), routes(editor)
    unedited = prompt_logits(loading.load("tiny-llama"), PROMPTS, side)
    logits = editor.model(**batch.inputs(), position_ids=batch.positions()).logits
    for row, route in enumerate(found):
        own = logits[row][batch.attention_mask[row].bool()]
        if route == UNEDITED:
            assert torch.equal(own[-1], unedited[row])
            continue
        whole = counterfactual_logits(editor, int(route.split()[1]), PROMPTS[row])
        assert torch.allclose(own, whole[-len(own) :], atol=1e-4)


def test_generation_goes_on_with_the_model_that_began_it(editor: Serac) -> None:
    h, found = editor.networks.counterfactual, routes(editor)
    expected = [
        generate(loading.load("tiny-llama"), [prompt])[0]
        if route == UNEDITED
        else generate(h, [f"{edit_text(edits()[int(route.split()[1])])}\n{prompt}"])[0]
        for route, prompt in zip(found, PROMPTS, strict=True)
    ]
    assert generate(editor.backbone, PROMPTS) == expected
    assert len(editor._hook._running) == 0  # caches end with the generation


def test_a_counterfactual_model_of_another_architecture_and_another_encoder() -> None:
    editor = serac("tiny-gpt2", counterfactual="tiny-gptj", classifier="tiny-distilbert")
    before = prompt_logits(editor.backbone, PROMPTS)
    editor.edit(edits(2))
    with editor.routed(encode_prompts(editor.backbone, PROMPTS), ["edit 1"] + [UNEDITED] * 7):
        after = prompt_logits(editor.backbone, PROMPTS)
    assert torch.allclose(after[0], counterfactual_logits(editor, 1, PROMPTS[0])[-1], atol=1e-4)
    assert torch.equal(after[1:], before[1:])


def test_what_cannot_work_is_refused(editor: Serac, tmp_path: Path) -> None:
    with pytest.raises(EditorError, match="vocabularies"):
        serac("tiny-gpt2", counterfactual="tiny-llama").fit(stream())
    with pytest.raises(EditorError, match="BERT encoder"):
        serac("tiny-gpt2", classifier="tiny-gptj").fit(stream())
    backbone = loading.load("tiny-llama")
    bare = build("serac", backbone, configuration("serac", backbone))
    with pytest.raises(EditorError, match="training="):
        bare.edit(edits(1))
    editor.save(tmp_path / "saved")
    other = serac()
    other.config, other.training = editor.config, replace(TRAINING, train=FACTS[:6])
    with pytest.raises(EditorError, match="other facts"):
        other.load(tmp_path / "saved")


def test_a_long_edit_is_shortened_to_what_the_positions_hold() -> None:
    h = untrained().counterfactual
    batch = encode_prompts(h, ["Name: Ash.", "who wrote the first letter?"])
    told = tell(h, ["x " * 900 + "end", "short\n"], batch)
    assert told.input_ids.shape[1] == h.model.config.max_position_embeddings - SPARE
    texts = [
        h.tokenizer.decode(row[mask.bool()])
        for row, mask in zip(told.input_ids, told.attention_mask, strict=True)
    ]
    assert texts[0].startswith(h.prefix) and texts[0].endswith("x endName: Ash.")
    assert texts[1] == f"{h.prefix}short\nwho wrote the first letter?"
