"""Perplexity columns of the records: tokens counted, end mark left out, target seen or not."""

import pytest
import torch

from lib.backbones.encoding import answer_ids, encode_prompts, prompt_ids, target_ids
from lib.backbones.sources import loading
from lib.data.datasets import load
from lib.data.streams import passage_stream
from lib.editors import build
from lib.errors import RecordError
from lib.evaluation.evaluator import Evaluator, Protocol
from lib.metrics import perplexity
from tests.conftest import configuration

STREAM = passage_stream(
    load("invented_passages"), n_edits=8, batch_size=4, seed=0, n_near=3, n_upstream=5
)
PROTOCOL = Protocol(max_new_tokens=3, evaluation_batch=4)


def rows(evaluator: Evaluator, subset: str) -> dict[str, list]:
    found = list(evaluator.records(subset, "end", 8))
    return {name: [row[name] for row in found] for name in found[0]}


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gpt2"])
def test_perplexity_is_what_the_model_itself_says(name: str) -> None:
    backbone = loading.load(name)
    editor = build("melo", backbone, configuration("melo", backbone))
    evaluator = Evaluator(editor, STREAM, PROTOCOL)
    evaluator.score_unedited()
    for subset, items in (("edits", STREAM.edits), ("upstream", STREAM.upstream)):
        found = rows(evaluator, subset)
        losses, counts = [], []
        for item in items:
            head = prompt_ids(backbone, item.prompt)
            answer = answer_ids(backbone, item.target)
            ids = torch.tensor([head + answer])
            labels = torch.tensor([[-100] * len(head) + answer])
            with torch.no_grad():
                losses.append(backbone.model(ids, labels=labels).loss.item())
            counts.append(len(answer))
        assert found["tokens"] == counts
        for column in ("answer_nll", "answer_nll_released"):
            assert found[column] == pytest.approx(losses, abs=1e-4)
        batches = perplexity.of_batches(found["answer_nll"], found["tokens"], found["batch"])
        assert list(batches) == [0, 1]
        weighted = zip(losses[:4], counts[:4], strict=True)
        mean = sum(a * b for a, b in weighted) / sum(counts[:4])
        assert batches[0] == pytest.approx(torch.tensor(mean).exp().item(), rel=1e-4)
    editor.close()


def test_the_released_key_serves_an_edit_only_where_the_target_is_seen() -> None:
    backbone = loading.load("tiny-llama")
    config = configuration("melo", backbone, key_position="last_column", radius=1e-3, steps=20)
    released = build("melo", backbone, config)
    evaluator = Evaluator(released, STREAM, PROTOCOL)
    evaluator.score_unedited()
    before = rows(evaluator, "edits")
    for batch in STREAM.batches():
        released.edit(batch)
    after = rows(evaluator, "edits")
    assert after["answer_nll"] == before["answer_nll"]
    assert all(map(float.__lt__, after["answer_nll_released"], before["answer_nll_released"]))
    assert after["prediction"] == before["prediction"]
    released.close()
    intended = build("melo", backbone, config | {"key_position": "last_prompt_token"})
    evaluator = Evaluator(intended, STREAM, PROTOCOL)
    evaluator.score_unedited()
    for batch in STREAM.batches():
        intended.edit(batch)
    after = rows(evaluator, "edits")
    assert after["answer_nll_released"] == after["answer_nll"] != before["answer_nll"]
    intended.close()


def test_long_targets_are_cut_and_empty_prompts_need_a_document_mark() -> None:
    llama, gpt2 = loading.load("tiny-llama"), loading.load("tiny-gpt2")
    whole = target_ids(llama, "the old harbour of Onn")
    assert whole[-1] == llama.eos_id
    assert target_ids(llama, "the old harbour of Onn", len(whole) - 1) == whole
    assert target_ids(llama, "the old harbour of Onn", len(whole) - 2) == whole[:-2]
    assert encode_prompts(llama, ["", "Onn"]).attention_mask.sum(dim=1)[0] == 1
    with pytest.raises(RecordError, match="first words of the text"):
        encode_prompts(gpt2, ["Onn", ""])
