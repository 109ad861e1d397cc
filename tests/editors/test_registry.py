"""Editors from plain values: configurations as YAML gives them, and the resources they ask for."""

import sys
import types
from dataclasses import dataclass

import pytest

from lib import editors
from lib.backbones.sources.loading import load
from lib.editors.base import EditorConfig
from lib.editors.finetune import FineTune
from lib.editors.parts.sites import Site
from lib.errors import EditorError


@dataclass(frozen=True)
class Config(EditorConfig):
    blocks: tuple[int, ...] = (1, 2)
    chosen: tuple[int, ...] | None = None
    site: Site = Site("mlp_out", 3)
    sites: tuple[Site, ...] = ()


class Needy(FineTune):
    needs = ("corpus", "values_cache")

    def __init__(self, backbone, config, *, corpus, values_cache) -> None:
        super().__init__(backbone, config)
        self.given = corpus, values_cache


@pytest.fixture
def needy(monkeypatch) -> str:
    module = types.ModuleType("needy")
    module.Needy, module.Config = Needy, Config
    monkeypatch.setitem(sys.modules, "needy", module)
    monkeypatch.setitem(editors.REGISTRY, "needy", ("needy", "Needy", "Config", "none"))
    return "needy"


def test_lists_become_tuples_and_mappings_sites(needy: str) -> None:
    site = {"part": "mlp_out", "block": 2}
    values = {"blocks": [3, 4], "chosen": [5], "site": site, "sites": [site]}
    config = editors.build(needy, load("tiny-gpt2"), values).config
    assert config.blocks == (3, 4) and config.chosen == (5,)
    assert config.site == Site("mlp_out", 2) and config.sites == (Site("mlp_out", 2),)
    assert editors.build(needy, load("tiny-gpt2"), {"chosen": None}).config.chosen is None


def test_an_editor_gets_the_resources_it_declares(needy: str) -> None:
    assert editors.needs_of(needy) == ("corpus", "values_cache")
    assert editors.needs_of("melo") == ("blocks_cache",) and editors.needs_of("ft") == ()
    built = editors.build(needy, load("tiny-gpt2"), {}, corpus="text", blocks_cache="elsewhere")
    assert built.given == ("text", None)


def test_unknown_settings_are_named(needy: str) -> None:
    with pytest.raises(EditorError, match=r"needy: depth: no such key; there are .*blocks"):
        editors.build(needy, load("tiny-gpt2"), {"depth": 3})
