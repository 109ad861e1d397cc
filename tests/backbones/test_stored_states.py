"""Hidden states over plain text: what plain passes give, kept in the cache."""

import pytest
import torch

from lib.backbones import text_states
from lib.backbones.encoding import prompt_ids
from lib.backbones.sources import loading
from lib.backbones.sources.tiny import TEXT
from lib.backbones.text_states import KeyText
from lib.data.corpus import Corpus

pytest_plugins = ("tests.editors.locate.locate_fixtures",)
pytestmark = pytest.mark.usefixtures("statistics_cache")

CORPUS = Corpus("tiny", TEXT)


@pytest.mark.parametrize("name", ["tiny-gptj", "tiny-llama"])
def test_stored_states_are_those_of_plain_passes(name: str, monkeypatch, capsys) -> None:
    backbone = loading.load(name)
    head = len(prompt_ids(backbone, "")) if backbone.prefix else 0
    seen = []
    mlp = backbone.module("mlp", 5)
    handle = mlp.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0][0]))
    for text in TEXT:
        ids = backbone.tokenizer(backbone.prefix + text)["input_ids"][:20]
        with torch.no_grad():
            backbone.model(input_ids=torch.tensor([ids]))
        seen[-1] = seen[-1][head:]
    handle.remove()
    expected = torch.cat(seen)
    states = text_states.stored_states(backbone, "mlp", 5, CORPUS, KeyText(10_000, 20))
    assert "gives only" in capsys.readouterr().err
    assert states.shape == expected.shape
    marks = ((rows @ torch.arange(1.0, 33.0)).sort().values for rows in (states, expected))
    assert torch.allclose(*marks, atol=1e-3)  # the same rows; documents go by length
    few = text_states.stored_states(backbone, "mlp", 5, CORPUS, KeyText(30, 20))
    assert torch.equal(few, states[:30])
    monkeypatch.delattr(text_states, "_collect")  # a second call makes no pass
    again = text_states.stored_states(backbone, "mlp", 5, CORPUS, KeyText(30, 20))
    assert torch.equal(again, few)
