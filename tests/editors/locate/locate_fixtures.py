"""Fixtures of the locate-and-edit tests; a test file asks for them by
`pytest_plugins = ("tests.editors.locate.locate_fixtures",)`."""

import pytest

from lib.backbones.backbone import Backbone
from lib.backbones.sources import loading

NAMES = ("tiny-gpt2", "tiny-gptj", "tiny-llama")


@pytest.fixture
def statistics_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory) -> None:
    """One cache of key statistics for the whole session, and not the user's."""
    folder = tmp_path_factory.getbasetemp() / "statistics-of-tiny-models"
    monkeypatch.setenv("STUDY_CACHE", str(folder))


@pytest.fixture(params=NAMES)
def causal(request: pytest.FixtureRequest) -> Backbone:
    """A fresh tiny backbone of each causal family."""
    return loading.load(request.param)
