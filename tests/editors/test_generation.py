"""`generate` and calls of an edited model, in every way that transformers offers."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import DynamicCache, GenerationConfig

from lib.backbones.backbone import Backbone
from lib.backbones.encoding import encode_prompts
from lib.backbones.sources import loading
from lib.editors import class_of
from lib.editors.base import Editor
from lib.errors import EditorError
from tests.conftest import EDITORS, edits, make, prompt_logits

EDITED = [edit.prompt for edit in edits(3)]
PROMPTS = [*EDITED, "who wrote the first letter?", EDITED[0]]  # of several lengths, one twice
DECIDING = (
    "melo",
    "elder",
    "grace",
    "comeba_hk",
    "serac",
    "defer",
    "wise",
)  # at a row's prompt, and then no more


def texts(backbone: Backbone, prompts: list[str] = PROMPTS, **options: Any) -> list[str]:
    batch = encode_prompts(backbone, prompts)
    ids = backbone.model.generate(
        **batch.inputs(), max_new_tokens=6, do_sample=False, pad_token_id=backbone.pad_id, **options
    )
    start = 1 if backbone.family.kind == "seq2seq" else batch.input_ids.shape[1]
    return backbone.tokenizer.batch_decode(ids[:, start:], skip_special_tokens=True)


def edited(kind: str, name: str = "tiny-llama", **changes: object) -> Editor:
    editor = make(kind, loading.load(name), **changes)
    editor.edit(edits(3))
    return editor


@pytest.fixture(scope="module", params=EDITORS)
def editor(request: pytest.FixtureRequest) -> Iterator[Editor]:
    """Edited; tests leave it as it is."""
    yield edited(request.param)


@pytest.fixture(params=DECIDING)
def deciding(request: pytest.FixtureRequest) -> Editor:
    return edited(request.param)


@pytest.mark.parametrize(
    "way",
    [
        {"use_cache": False},
        {"generation_config": GenerationConfig(use_cache=False)},
        {"cache_implementation": "static"},
    ],
    ids=["no cache", "no cache, configured", "static"],
)
def test_every_kind_of_cache_gives_the_same_text(editor: Editor, way: dict[str, Any]) -> None:
    assert texts(editor.backbone, **way) == texts(editor.backbone)


def test_a_cache_of_the_callers_own_gives_the_same_text(editor: Editor) -> None:
    usual = texts(editor.backbone)
    assert texts(editor.backbone, past_key_values=DynamicCache()) == usual


def test_a_model_whose_cache_is_switched_off_gives_the_same_text(editor: Editor) -> None:
    model, usual = editor.model, texts(editor.backbone)
    model.config.use_cache = model.generation_config.use_cache = False
    try:
        assert texts(editor.backbone) == usual
    finally:
        model.config.use_cache = model.generation_config.use_cache = True


def test_assisted_decoding_gives_the_same_text(editor: Editor) -> None:
    for prompt in PROMPTS[:4]:
        usual = texts(editor.backbone, [prompt])
        assert texts(editor.backbone, [prompt], prompt_lookup_num_tokens=3) == usual


def test_beams_give_the_same_text_with_and_without_a_cache(editor: Editor) -> None:
    if not editor.beams:
        with pytest.raises(EditorError, match="beam search"):
            texts(editor.backbone, num_beams=3)
        with pytest.raises(EditorError, match="beam search"):
            texts(editor.backbone, generation_config=GenerationConfig(num_beams=2))
        return
    found = texts(editor.backbone, num_beams=3)
    assert texts(editor.backbone, num_beams=3, use_cache=False) == found
    assert [texts(editor.backbone, [prompt], num_beams=3)[0] for prompt in PROMPTS] == found


def test_samples_of_one_seed_are_the_same_with_and_without_a_cache(editor: Editor) -> None:
    """Two for each prompt: rows are repeated, as beams are."""
    backbone = editor.backbone
    batch = encode_prompts(backbone, PROMPTS)

    def samples(**options: Any) -> list[str]:
        torch.manual_seed(3)
        ids = backbone.model.generate(
            **batch.inputs(), max_new_tokens=6, do_sample=True, num_return_sequences=2,
            pad_token_id=backbone.pad_id, **options,
        )  # fmt: skip
        return backbone.tokenizer.batch_decode(ids[:, batch.input_ids.shape[1] :])

    found = samples()
    assert len(found) == 2 * len(PROMPTS) and len(set(found)) > len(set(PROMPTS))
    assert samples() == found
    assert samples(use_cache=False) == found


@pytest.mark.parametrize("kind", [k for k in EDITORS if "seq2seq" in class_of(k).kinds])
def test_a_seq2seq_model_gives_the_same_text(kind: str) -> None:
    backbone = edited(kind, "tiny-t5").backbone
    assert texts(backbone, use_cache=False) == texts(backbone)
    beams = texts(backbone, num_beams=2)
    assert texts(backbone, num_beams=2, use_cache=False) == beams


def test_embeddings_and_a_missing_mask_are_the_same_prompt(editor: Editor) -> None:
    backbone = editor.backbone
    usual, apart = prompt_logits(backbone, EDITED[:1]), encode_prompts(backbone, EDITED[:1])
    with torch.no_grad():
        plain = backbone.model(apart.input_ids).logits[:, -1]
        assert torch.equal(plain, usual)
        vectors = backbone.model.get_input_embeddings()(apart.input_ids)
        if editor.name == "SERAC":
            with pytest.raises(EditorError, match="no text to judge"):
                backbone.model(inputs_embeds=vectors)
        else:
            assert torch.equal(backbone.model(inputs_embeds=vectors).logits[:, -1], usual)


def test_training_mode_changes_nothing(editor: Editor) -> None:
    usual = prompt_logits(editor.backbone, EDITED)
    editor.model.train()
    try:
        assert torch.equal(prompt_logits(editor.backbone, EDITED), usual)
    finally:
        editor.model.eval()


def test_a_filled_cache_is_refused(deciding: Editor) -> None:
    backbone, cache = deciding.backbone, DynamicCache()
    batch = encode_prompts(backbone, EDITED[:1])
    with torch.no_grad():
        backbone.model(batch.input_ids[:, :5], past_key_values=cache, use_cache=True)
    with pytest.raises(EditorError, match="filled cache"):
        texts(backbone, EDITED[:1], past_key_values=cache)
    texts(backbone)  # the next one is as usual again


def test_a_prompt_in_pieces_is_refused(deciding: Editor) -> None:
    with pytest.raises(EditorError, match="prefill_chunk_size"):
        texts(deciding.backbone, prefill_chunk_size=4)


@pytest.mark.parametrize("kind", ["melo", "elder"])
def test_a_decision_per_step_needs_the_cache(kind: str) -> None:
    editor = edited(kind, route_per_step=True)
    texts(editor.backbone)
    with pytest.raises(EditorError, match="use_cache=True"):
        texts(editor.backbone, use_cache=False)


@pytest.mark.parametrize("kind", DECIDING)
def test_two_conversations_take_turns(kind: str) -> None:
    """Each cache keeps the decision of its own prompt, whatever passes come between."""
    backbone = edited(kind).backbone
    prompts = (EDITED[0], "who wrote the first letter?")
    caches, found = [DynamicCache() for _ in prompts], []
    step = torch.tensor([[7]])
    with torch.no_grad():
        for prompt, cache in zip(prompts, caches, strict=True):
            ids = encode_prompts(backbone, [prompt]).input_ids
            backbone.model(ids, past_key_values=cache, use_cache=True)
            alone = DynamicCache()
            backbone.model(ids, past_key_values=alone, use_cache=True)
            found.append(backbone.model(step, past_key_values=alone, use_cache=True).logits)
        for cache, usual in zip(caches, found, strict=True):
            again = backbone.model(step, past_key_values=cache, use_cache=True).logits
            assert torch.equal(again, usual)


@pytest.mark.parametrize("kind", ["melo", "elder", "serac", "wise"])
def test_a_cache_of_another_model_is_refused(kind: str) -> None:
    foreign, cache = loading.load("tiny-llama"), DynamicCache()
    ids = encode_prompts(foreign, EDITED[:1]).input_ids
    editor = make(kind, loading.load("tiny-llama"))
    with torch.no_grad():
        foreign.model(ids, past_key_values=cache, use_cache=True)
        editor.model(ids[:, :1], past_key_values=cache, use_cache=True)  # not yet edited
        editor.edit(edits(1))
        with pytest.raises(EditorError, match="did not fill"):
            editor.model(ids[:, :1], past_key_values=cache, use_cache=True)
