"""A checkpoint of each family as stock transformers saves it: every editor that supports it edits
twenty facts, is kept, is opened in a fresh process, and gives the model back bit for bit."""

import itertools
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
import torch

import lib
from lib.backbones.sources import tiny
from lib.editors import class_of
from lib.editors.registry import REGISTRY
from lib.errors import EditorError
from tests.conftest import prompt_logits
from tests.processes import PATIENCE, start

FAMILIES = {
    "gpt2": tiny.tiny_gpt2, "gptj": tiny.tiny_gptj, "llama": tiny.tiny_llama,
    "qwen2": tiny.tiny_qwen2, "gpt_neox": tiny.tiny_gpt_neox, "t5": tiny.tiny_t5,
    "bert": tiny.tiny_bert,
}  # fmt: skip
PLACES = tuple(
    f"{first} {second}"
    for first, second in itertools.product(
        ("Low", "Fair", "Mew", "Gull", "East"), ("Ness", "Head", "Stone", "Pier")
    )
)
HARBOURS = ("Selby", "Wick", "Calder", "Tavik", "Odde")
# Enough different words that key statistics have full rank.
TEXT = [f"Boat {n} leaves {PLACES[n % 20]} at {n * 7 % 24} o'clock, {n * n}." for n in range(200)]
SEARCHES = ("rome", "wilke", "t_patcher")  # fact after fact: all twenty on one family alone
LESSONS = {"causal": "invented_statements", "seq2seq": "invented", "classifier": "invented_claims"}


def facts(kind: str) -> list[lib.Edit]:
    """Twenty facts, the answers of a classifier class numbers."""
    return [
        lib.Edit("The ferry of {} sails from", str(n % 2) if kind == "classifier" else harbour,
                 subject=place)
        for n, (place, harbour) in enumerate(zip(PLACES, HARBOURS * 4, strict=True))
    ]  # fmt: skip


PROMPTS = [fact.prompt for fact in facts("causal")[:4]] + ["Who rang the bell?"]


def opened(connection: Connection, folders: dict[str, list[tuple[str, Path]]]) -> None:
    """In another process: logits under every kept edit, by model."""
    found = {}
    for model, kept in folders.items():
        backbone = lib.load(model)
        for editor, folder in kept:
            with lib.open(folder, backbone, text=TEXT):
                found[model, editor] = prompt_logits(backbone, PROMPTS).numpy()
    connection.send(found)


def test_every_editor_on_a_checkpoint_of_every_family(tmp_path: Path) -> None:
    expected, folders = {}, {}
    for family, made in FAMILIES.items():
        model, tokenizer = made()
        folder = tmp_path / family
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        backbone = lib.load(folder)
        kind = backbone.family.kind
        weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        before = prompt_logits(backbone, PROMPTS)
        for editor in REGISTRY:
            options = {"text": TEXT, "lessons": LESSONS[kind]}
            if kind not in class_of(editor).kinds:
                with pytest.raises(EditorError, match=f"does not support {kind} models"):
                    lib.edit(backbone, editor, facts(kind), **options)
                continue
            count = 2 if editor in SEARCHES and family != "llama" else 20
            options["batch_size"] = count
            with lib.edit(backbone, editor, facts(kind)[:count], **options) as edited:
                assert edited.editor.n_edits == count
                after = prompt_logits(backbone, PROMPTS)
                kept = edited.save(tmp_path / f"{family}-{editor}")
            if editor != "serac":  # its scope, of a few steps, may hold nothing
                assert not torch.equal(after, before), (family, editor)
            assert torch.equal(prompt_logits(backbone, PROMPTS), before), (family, editor)
            expected[str(folder), editor] = after.numpy()
            folders.setdefault(str(folder), []).append((editor, kept))
        now = backbone.model.state_dict()
        assert now.keys() == weights.keys()
        assert all(torch.equal(now[name], weights[name]) for name in weights), family
    process, connection = start(opened, folders)
    found = connection.recv()
    process.join(PATIENCE)
    assert process.exitcode == 0
    assert [key for key in expected if not np.array_equal(found[key], expected[key])] == []
    assert len(expected) == 5 * 21 + 2 * 10
