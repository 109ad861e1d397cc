"""Settings for models that the study has never seen."""

from dataclasses import replace

import pytest

from lib.api.choices import SHAPES, TINY, Shape, choose, kind_of, shape_of
from lib.backbones.backbone import Backbone
from lib.backbones.sources import loading
from lib.editors import SETTINGS, class_of, configured, settings_of
from lib.editors.registry import REGISTRY
from lib.errors import EditorError
from lib.storage import documents

MODELS = (
    "tiny-gpt2", "tiny-gptj", "tiny-llama", "tiny-qwen2", "tiny-gpt-neox", "tiny-t5", "tiny-bert",
)  # fmt: skip


class Imagined(Backbone):
    """A backbone of another size: tiny, but for what settings are chosen by."""

    depth = 0

    def n_blocks(self, stack: str | None = None) -> int:
        return self.depth


def imagined(name: str, depth: int, width: int, monkeypatch: pytest.MonkeyPatch) -> Backbone:
    tiny = loading.load(name)
    found = Imagined(**vars(replace(tiny, name="somebody/else")))
    found.depth = depth
    shape = Shape(tiny.family.name, tiny.family.kind, depth, width)
    monkeypatch.setattr("lib.api.choices.shape_of", lambda _: shape)
    monkeypatch.setattr("lib.api.choices.key_width", lambda *_: 4 * width)
    return found


def blocks_of(config: dict) -> list[int]:
    layers = [config[name] for name in ("site", "router", "sensor") if name in config]
    layers += config.get("sites", [])
    return [*config.get("blocks", []), *(layer["block"] for layer in layers)]


def test_every_model_with_settings_has_a_shape() -> None:
    named = {
        name
        for path in SETTINGS.glob("*.yaml")
        for entry in documents.read(path).values()
        for name in entry
    }
    assert named <= {*SHAPES, "gpt2-xl-grace"}  # GRACE's GPT2-XL is one for texts, not for facts
    for name in (name for name in SHAPES if name.startswith("tiny-")):
        assert shape_of(loading.load(name)) == SHAPES[name]


def test_the_studys_own_models_get_the_studys_settings() -> None:
    backbone = loading.load("tiny-llama")
    choice = choose("FT-L", backbone, {})
    assert choice.config == settings_of("ft_l", "tiny-llama")
    assert choice.origin == "FT-L's settings are those of tiny-llama."


@pytest.mark.parametrize("depth", [2, 5, 12, 24, 40])
@pytest.mark.parametrize("name", MODELS)
def test_every_place_is_one_of_the_models_own(
    name: str, depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = imagined(name, depth, 1024, monkeypatch)
    for kind in REGISTRY:
        if backbone.family.kind not in class_of(kind).kinds:
            continue
        changes = {"counterfactual": "gpt2"} if kind == "serac" else {}
        choice = choose(kind, backbone, changes)
        assert configured(kind, choice.config)
        assert all(0 <= block < depth for block in blocks_of(choice.config)), kind
        assert "not tuned for somebody/else" in choice.origin
        parts = [layer["part"] for layer in choice.config.get("sites", [])]
        parts += choice.config.get("parts", [])
        assert {*parts} <= {*backbone.family.parts("encoder" if name == "tiny-t5" else None)}
        below = choice.config.get("router") or choice.config.get("sensor")
        if below:
            first = min(
                layer["block"]
                for layer in choice.config["sites"]
                if layer.get("stack") == below.get("stack")
            )
            assert below["block"] < first


def test_places_keep_their_relative_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = imagined("tiny-gpt2", 24, 1024, monkeypatch)
    assert settings_of("memit", "gpt2-xl")["blocks"] == [13, 14, 15, 16, 17]
    choice = choose("MEMIT", backbone, {})
    assert choice.config["blocks"] == [6, 7, 8] and choice.config["n_layers"] == 3
    assert "those of gpt2-xl" in choice.origin and "48 blocks there, 24 here" in choice.origin
    assert choice.config["statistics_tokens"] == 81_000  # twenty for each of 4,096 dimensions
    given = choose("MEMIT", backbone, {"blocks": [1], "n_layers": 1})
    assert given.config["blocks"] == [1] and "but for blocks, n_layers" in given.origin


def test_a_small_llama_is_nearest_to_the_studys(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = imagined("tiny-qwen2", 24, 896, monkeypatch)
    for editor in ("MEMIT", "GRACE", "MALMEN", "LoRA"):
        assert "those of smollm2-135m" in choose(editor, backbone, {}).origin
    backbone = imagined("tiny-llama", 32, 4096, monkeypatch)
    assert "those of llama-2-7b" in choose("ROME", backbone, {}).origin
    # What is trained on a few facts has the settings that were chosen for a few facts.
    assert "those of smollm2-135m" in choose("MEND", backbone, {}).origin


def test_queries_and_values_are_what_the_model_has(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = imagined("tiny-llama", 48, 1600, monkeypatch)
    llama = choose("LoRA", backbone, {"sites": []})
    assert llama.config.get("parts", ["attn_query", "attn_value"]) == ["attn_query", "attn_value"]
    backbone = imagined("tiny-gpt-neox", 32, 4096, monkeypatch)
    assert choose("LoRA", backbone, {}).config["parts"] == ["attn_qkv"]


def test_models_of_tests_are_no_example_for_real_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = imagined("tiny-gptj", 12, 256, monkeypatch)
    for kind in ("t_patcher", "ft_epochs", "memit"):
        origin = choose(kind, backbone, {}).origin
        assert "tiny" not in origin
    assert "are its defaults" in choose("T-Patcher", backbone, {}).origin
    assert all(shape.width > TINY for name, shape in SHAPES.items() if "tiny" not in name)


def test_names_and_what_is_not_supported() -> None:
    assert [kind_of(name) for name in ("MEMIT", "FT-L", "ELDER replayed", "comeba-hk")] == [
        "memit", "ft_l", "elder_replayed", "comeba_hk",
    ]  # fmt: skip
    with pytest.raises(EditorError, match="did you mean memit"):
        kind_of("MENIT")
    with pytest.raises(EditorError, match=r"ROME does not support seq2seq.*it supports causal"):
        choose("ROME", loading.load("tiny-t5"), {})


def test_prompts_of_ones_own_are_not_cut() -> None:
    assert settings_of("melo", "tiny-t5")["max_length"] == 20
    assert "max_length" not in choose("MELO", loading.load("tiny-t5"), {}).config
    assert choose("MELO", loading.load("tiny-bert"), {}).config["max_length"] == 96


def test_a_second_copy_of_a_model_in_memory_cannot_be_had() -> None:
    tiny = loading.load("tiny-llama")
    backbone = loading.adopt(tiny.model, tiny.tokenizer)
    with pytest.raises(EditorError, match="save it"):
        choose("SERAC", backbone, {})
