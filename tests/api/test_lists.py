"""What there is to choose from is what can be built and loaded."""

import pytest

import lib
from lib.backbones.sources import loading
from lib.editors import REGISTRY, class_of
from lib.errors import EditorError


def test_every_editor_is_listed_with_what_it_supports_and_needs() -> None:
    found = lib.list_editors().set_index("name")
    assert list(found.index) == list(REGISTRY)
    facts = [lib.Edit("The bell of Ash is rung by", "1")]
    for kind, row in found.iterrows():
        assert row["editor"] == class_of(kind).name
        if "bert" not in row["architectures"].split(", "):
            with pytest.raises(EditorError, match="does not support classifier models"):
                lib.edit("tiny-bert", kind, facts)
    assert found.loc["malmen", "first"] == "trains on facts"
    assert found.loc["memit", "first"] == "reads text" and found.loc["grace", "first"] == ""
    assert found.loc["memit", "in_weights"] and not found.loc["comeba_hk", "in_weights"]
    assert "gpt-j-6b" in found.loc["rome", "settings"].split(", ")


def test_every_model_is_listed_and_as_it_is_loaded() -> None:
    found = lib.list_models().set_index("name")
    assert list(found.index) == list(loading.names())
    for name, row in found.iterrows():
        if row["weights"] == "random" and row["architecture"]:
            backbone = lib.load(name)
            shape = (backbone.family.name, backbone.family.kind, backbone.n_blocks())
            assert tuple(row[["architecture", "kind", "blocks"]]) == shape
    assert found.loc["gpt2", "weights"] == "openai-community/gpt2 on the model hub"
