"""Models and edits of one's own: asked, scored, kept, opened, written out, taken back."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

import lib
from lib.backbones.backbone import Backbone
from lib.backbones.encoding import answer_ids, encode, encode_prompts
from lib.backbones.sources import tiny
from lib.editors.base import editor_of
from lib.errors import BackboneError, EditorError, RecordError
from tests.conftest import generate, hooked, prompt_logits

FACTS = [
    lib.Edit(
        "The ferry of {} sails from", harbour, subject=place,
        rephrases=[f"Where does the ferry of {place} leave from? From"],
        locality=["The sky above is", ("The sea is", "grey")],
    )
    for place, harbour in (("Ash", "Selby"), ("Old Heron Reach", "Port Ost"), ("Skerry", "Wick"))
]  # fmt: skip
PROMPTS = [fact.prompt for fact in FACTS]
TEXT = "invented"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as transformers writes it."""
    folder = tmp_path_factory.mktemp("mine")
    model, tokenizer = tiny.tiny_llama(seed=3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def model(folder: Path) -> Backbone:
    return lib.load(folder)


def test_a_model_from_wherever_it_is(folder: Path) -> None:
    mine = lib.load(folder)
    assert mine.name == f"dir:{folder}" and lib.load(str(folder)).content == mine.content
    assert lib.load(mine) is mine and lib.load("tiny-gpt2").name == "tiny-gpt2"
    assert lib.load(folder, dtype="bfloat16").dtype is torch.bfloat16
    assert lib.load(folder, prefix="<|endoftext|>").prefix == "<|endoftext|>"
    pair = tiny.tiny_llama(seed=3)
    held = lib.load(pair)
    assert held.model is pair[0] and held.dtype is torch.float32
    assert torch.equal(prompt_logits(held, PROMPTS), prompt_logits(mine, PROMPTS))


def test_models_that_cannot_be_had_are_told(folder: Path, tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(BackboneError, match="there is no such folder"):
        lib.load("smolm2")
    with pytest.raises(BackboneError, match=r"config\.json"):
        lib.load(tmp_path)
    with pytest.raises(BackboneError, match="dtype 'int8'"):
        lib.load(folder, dtype="int8")
    pair = tiny.tiny_llama()
    with pytest.raises(BackboneError, match="with its tokenizer"):
        lib.load(pair[0])
    with pytest.raises(BackboneError, match=r"not in torch\.bfloat16"):
        lib.load(pair, dtype="bfloat16")
    pair[0].lm_head.bfloat16()
    with pytest.raises(BackboneError, match="several precisions"):
        lib.load((pair[0].requires_grad_(True), pair[1]))
    assert next(pair[0].parameters()).requires_grad  # and is as it was
    foreign, tokenizer = tiny.tiny_gpt2()
    foreign.config.model_type = "mamba"
    with pytest.raises(BackboneError, match="no module map for the architecture 'mamba'"):
        lib.load((foreign, tokenizer))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(BackboneError, match="hub:nobody/nothing could not be loaded"):
        lib.load("nobody/nothing")


def test_a_model_is_itself_again_when_the_context_ends(model: Backbone) -> None:
    before, hooks = prompt_logits(model, PROMPTS), hooked(model)
    with lib.edit(model, "FT-L", FACTS) as edited:
        assert edited.model is model.model
        assert not torch.equal(prompt_logits(model, PROMPTS), before)
    assert torch.equal(prompt_logits(model, PROMPTS), before) and hooked(model) == hooks
    for use in (edited.score, lambda: edited.generate("x"), lambda: edited.save("x")):
        with pytest.raises(EditorError, match="taken back"):
            use()


def test_two_editors_on_one_model_are_refused(model: Backbone) -> None:
    with lib.edit(model, "GRACE", FACTS) as edited:
        kept = prompt_logits(model, PROMPTS)
        for other in ("FT-L", "GRACE"):
            with pytest.raises(EditorError, match="GRACE is at work"):
                lib.edit(model, other, FACTS)
        assert torch.equal(prompt_logits(model, PROMPTS), kept)
        edited.edit(lib.Edit("Who rows?", "Odo"))  # the same editor goes on
        assert edited.editor.n_edits == 4 and len(edited.facts) == 4
    with lib.edit(model, "FT-L", FACTS):
        pass


def test_an_edit_that_fails_leaves_the_model_free(model: Backbone) -> None:
    before = prompt_logits(model, PROMPTS)
    with pytest.raises(EditorError, match="names no subject"):
        lib.edit(model, "ROME", lib.Edit("Who rows?", "Odo"), text=TEXT)
    with pytest.raises(EditorError, match="stepps: no such key"):
        lib.edit(model, "FT-L", FACTS, stepps=3)
    with pytest.raises(RecordError, match="no fact"):
        lib.edit(model, "FT-L", [])
    with pytest.raises(RecordError, match="is no fact"):
        lib.edit(model, "FT-L", [("The sky is", "green")])
    assert editor_of(model) is None and torch.equal(prompt_logits(model, PROMPTS), before)


def test_scores_are_what_the_model_writes_and_finds_likely(model: Backbone) -> None:
    """Against slow calls, one prompt at a time."""

    def forced(fact: lib.Edit) -> tuple[float, float]:
        row, ids = encode(model, [fact.prompt], [fact.target]), answer_ids(model, fact.target)
        start = int(row.last_prompt)
        logits = model.model(row.input_ids).logits[0, start : start + len(ids)].log_softmax(-1)
        mean = logits[torch.arange(len(ids)), torch.tensor(ids)].mean()
        return float(logits.argmax(-1).tolist() == ids), float(mean.exp())

    def written() -> list[str]:
        return [generate(model, [prompt], tokens)[0].strip() for prompt in PROMPTS]

    tokens = max(len(answer_ids(model, fact.target)) for fact in FACTS)
    before, likely = written(), [forced(fact) for fact in FACTS]
    with lib.edit(model, "FT", FACTS, steps=40) as edited:
        frame = edited.score()
        rows = frame[frame["kind"] == "edit"]
        assert rows["before"].tolist() == before and rows["after"].tolist() == written()
        for side, pairs in (("before", likely), ("after", [forced(fact) for fact in FACTS])):
            right, probability = zip(*pairs, strict=True)
            assert rows[f"forced_{side}"].tolist() == list(right)
            # float32 sums differ with the shape of the batch
            np.testing.assert_allclose(rows[f"probability_{side}"], probability, rtol=1e-4)
        begins = [text.startswith(f.target) for text, f in zip(rows["after"], FACTS, strict=True)]
        assert rows["right_after"].tolist() == begins and any(begins)
        # The edits are in force again, and other facts can be asked about.
        assert rows["after"].tolist() == written()
        other = edited.score(lib.Edit("The sky above is", "green"))
        length = len(answer_ids(model, "green"))
        plain = generate(lib.load(model.name), ["The sky above is"], length)
        assert other["before"].tolist() == [plain[0].strip()]
    assert frame["kind"].value_counts().to_dict() == {"edit": 3, "rephrase": 3, "locality": 6}
    assert frame["fact"].tolist() == sorted(frame["fact"])
    untold = frame[frame["target"] == ""]
    assert len(untold) == 3 and untold["right_after"].isna().all()
    assert (untold["unchanged"] == (untold["before"] == untold["after"])).all()


@pytest.mark.parametrize("editor", ["GRACE", "MELO", "ELDER", "COMEBA-HK", "FT-L"])
def test_generate_gives_the_same_text_in_every_way(model: Backbone, editor: str) -> None:
    with lib.edit(model, editor, FACTS, text=TEXT) as edited:
        usual = edited.generate(PROMPTS, 6)
        assert usual == [text.strip() for text in generate(model, PROMPTS, 6)]
        assert [edited.generate(prompt, 6) for prompt in PROMPTS] == usual
        assert edited.generate(PROMPTS, 6, use_cache=False) == usual
        assert edited.generate(PROMPTS, 6, cache_implementation="static") == usual
        beams = edited.generate(PROMPTS, 6, num_beams=2)
        assert [edited.generate(prompt, 6, num_beams=2) for prompt in PROMPTS] == beams
        state = torch.random.get_rng_state()
        samples = edited.generate(PROMPTS, 6, do_sample=True, seed=1, num_return_sequences=2)
        assert len(samples) == 6 and torch.equal(torch.random.get_rng_state(), state)
        torch.manual_seed(9)
        again = edited.generate(
            PROMPTS, 6, do_sample=True, seed=1, num_return_sequences=2, use_cache=False
        )
        assert again == samples
        assert edited.generate(PROMPTS[:1], 6) == usual[:1]


def test_saved_edits_are_opened_on_the_model_they_belong_to(
    model: Backbone, folder: Path, tmp_path: Path
) -> None:
    with lib.edit(model, "MEMIT", FACTS, text=TEXT) as edited:
        kept, text = edited.save(tmp_path / "kept"), edited.generate(PROMPTS)
        logits, origin = prompt_logits(model, PROMPTS), edited.origin
    with lib.open(kept) as opened:  # loads the model by what was saved
        assert opened.generate(PROMPTS) == text and opened.origin == origin
        assert [*opened.facts] == FACTS and torch.equal(
            prompt_logits(opened.backbone, PROMPTS), logits
        )
        opened.edit(lib.Edit("Who keeps Mew Stone?", "Odo", "Mew Stone"))
        again = opened.save(tmp_path / "again")
    assert len(json.loads((again / "edits.json").read_text())["facts"]) == 4
    with pytest.raises(EditorError, match=r"another precision \(torch.float32\)"):
        lib.open(kept, lib.load(folder, dtype="bfloat16"))
    with pytest.raises(EditorError, match="another backbone"):
        lib.open(kept, lib.load("tiny-gpt2"))


def test_edits_of_a_model_in_memory_are_opened_on_that_model(tmp_path: Path) -> None:
    held = lib.load(tiny.tiny_gpt2())
    with lib.edit(held, "FT-L", FACTS) as edited:
        text, kept = edited.generate(PROMPTS), edited.save(tmp_path / "kept")
    with pytest.raises(EditorError, match="made on a model in memory"):
        lib.open(kept)
    with lib.open(kept, tiny.tiny_gpt2()) as opened:
        assert opened.generate(PROMPTS) == text


def test_a_prefix_is_part_of_what_is_opened(folder: Path, tmp_path: Path) -> None:
    marked = lib.load(folder, prefix="<|endoftext|>")
    with lib.edit(marked, "GRACE", FACTS) as edited:
        text, kept = edited.generate(PROMPTS), edited.save(tmp_path / "kept")
    with lib.open(kept) as opened:
        assert opened.backbone.prefix == "<|endoftext|>" and opened.generate(PROMPTS) == text
    with pytest.raises(EditorError, match="another prefix"):
        lib.open(kept, folder)


def test_a_damaged_save_is_told_and_leaves_the_edits_in_force(
    model: Backbone, folder: Path, tmp_path: Path
) -> None:
    with lib.edit(model, "FT-L", FACTS[:1]) as edited:
        kept = edited.save(tmp_path / "kept")
        edited.edit(FACTS[1:])
        now = prompt_logits(model, PROMPTS)
        for name in ("edits.json", "editor.json", "weights.safetensors"):
            whole = (kept / name).read_bytes()
            flipped = bytearray(whole)
            flipped[len(whole) // 2] ^= 255
            for damaged in (whole[: len(whole) // 2], bytes(flipped), b"{}"):
                (kept / name).write_bytes(damaged)
                with pytest.raises(EditorError, match=r"damaged|another|at work"):
                    lib.open(kept, model)
                with pytest.raises(EditorError, match="damaged"):
                    lib.open(kept, folder)
            (kept / name).unlink()
            with pytest.raises(EditorError, match="missing"):
                lib.open(kept, folder)
            (kept / name).write_bytes(whole)
        assert torch.equal(prompt_logits(model, PROMPTS), now)
    with lib.open(kept, folder) as opened:
        assert opened.editor.n_edits == 1


@pytest.mark.parametrize("editor", ["MEMIT", "ROME", "FT-L", "MEND"])
def test_edited_weights_are_written_as_a_stock_checkpoint(
    editor: str, model: Backbone, tmp_path: Path
) -> None:
    with lib.edit(model, editor, FACTS, text=TEXT, lessons="invented_statements") as edited:
        wanted, text = prompt_logits(model, PROMPTS), edited.generate(PROMPTS)
        edited.save_pretrained(tmp_path)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    again = lib.load(tmp_path)
    assert torch.equal(prompt_logits(again, PROMPTS), wanted)
    batch = encode_prompts(again, PROMPTS[:1])
    ids = stock.generate(**batch.inputs(), max_new_tokens=20)[:, batch.input_ids.shape[1] :]
    assert again.tokenizer.decode(ids[0], skip_special_tokens=True).strip() == text[0]


def test_what_is_no_checkpoint_says_what_to_do_instead(model: Backbone, tmp_path: Path) -> None:
    with (
        lib.edit(model, "GRACE", FACTS) as edited,
        pytest.raises(EditorError, match=r"save\(folder\).*lib\.open.*MEMIT"),
    ):
        edited.save_pretrained(tmp_path / "stock")
    assert not (tmp_path / "stock").exists()
    with lib.edit(model, "LoRA", FACTS, lr=0.05) as edited:
        with pytest.raises(EditorError, match=r"PeftModel\.from_pretrained"):
            edited.save_pretrained(tmp_path / "stock")
        wanted = prompt_logits(model, PROMPTS)
        kept = edited.save(tmp_path / "adapter")
    before = prompt_logits(model, PROMPTS)
    assert (wanted - before).abs().max() > 0.01
    peft = PeftModel.from_pretrained(lib.load(model.name).model, kept).eval()
    rows = encode_prompts(model, PROMPTS, side="right")
    found = peft(**rows.inputs()).logits[torch.arange(3), rows.last_token]
    # PEFT multiplies by the scale after B, this library by the gate before it
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_what_learns_first_says_so_and_is_kept(
    model: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setenv("STUDY_CACHE", str(tmp_path / "cache"))
    given = {"text": TEXT, "lessons": "invented_statements"}
    for editor, told in (("MEMIT", "key statistics"), ("MEND", "trains its network on")):
        lib.edit(model, editor, FACTS, **given).close()
        said = capsys.readouterr().err
        assert f"{editor} first" in said and told in said and str(tmp_path / "cache") in said
        lib.edit(model, editor, FACTS, **given).close()
        assert "first" not in capsys.readouterr().err


def test_text_and_lessons_of_ones_own(model: Backbone) -> None:
    lessons = [
        lib.Edit(f"The lamp of {n} is kept by", f"keeper {n}", f"{n}",
                 [f"Who keeps the lamp of {n}? It is"], [("The sea is", "grey")])
        for n in range(10)
    ]  # fmt: skip
    text = [f"The boat number {n} leaves the pier {n * n} at dawn." for n in range(80)]
    with lib.edit(model, "MEMIT", FACTS, text=text) as edited:
        assert edited.editor.corpus.texts == tuple(text)
    with lib.edit(model, "MALMEN", FACTS, lessons=lessons, train_m=2) as edited:
        assert len(edited.editor.training.train) == 8
    with pytest.raises(RecordError, match="needs a rephrase and a locality prompt"):
        lib.edit(model, "MALMEN", FACTS, lessons=FACTS[:1] * 2)
    with pytest.raises(RecordError, match="not empty"):
        lib.edit(model, "MEMIT", FACTS, text=["", "x"])
    assert editor_of(model) is None


def test_names_are_imported_when_they_are_asked_for() -> None:
    assert {"load", "Edit", "edit", "edits", "open", "compare"} <= set(dir(lib))
    typed = Path(lib.__file__).with_suffix(".pyi").read_text("utf-8")
    pairs = re.findall(r"^from lib\.api\.(\w+) import (\w+) as \2$", typed, re.MULTILINE)
    assert {name: home for home, name in pairs} == lib._HOMES
    with pytest.raises(AttributeError, match="no attribute 'edti'"):
        _ = lib.edti
