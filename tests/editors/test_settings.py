"""Hyper-parameters of editors on backbones: each once, of the right type, at places that exist."""

from pathlib import Path

import pytest

from lib import editors
from lib.backbones.sources.loading import load
from lib.errors import EditorError
from lib.storage import documents
from lib.storage.checked import FaultyError
from lib.storage.documents import plain

FILES = sorted(editors.SETTINGS.glob("*.yaml"))
STATED = [
    (kind, backbone)
    for path in FILES
    for kind, found in documents.read(path).items()
    for backbone in found
]


def test_every_editor_has_one_home() -> None:
    kinds = [kind for path in FILES for kind in documents.read(path)]
    assert sorted(kinds) == sorted(editors.REGISTRY) and len(STATED) > 100


@pytest.mark.parametrize("kind", editors.REGISTRY)
def test_every_misspelt_key_is_refused(kind: str) -> None:
    for backbone in (name for editor, name in STATED if editor == kind):
        values = plain(editors.stated(kind, backbone))
        for key in values:
            wrong = {f"{name}x" if name == key else name: item for name, item in values.items()}
            with pytest.raises(FaultyError) as caught:
                editors.configured(kind, wrong)
            assert caught.value.faults == (((f"{key}x",), f"no such key; did you mean {key}?"),)


@pytest.mark.parametrize(
    "text, told",
    [
        ("ft: {tiny-gpt2: {stepz: 3}}", "ft.tiny-gpt2.stepz: no such key; did you mean steps?"),
        ("ft: {tiny-gpt2: {lr: 1e-2}}", "ft.tiny-gpt2.lr: should be a valid number, not '1e-2'"),
        ("ft: {tiny-lama: {lr: 1.0}}", "tiny-lama: no such name; did you mean tiny-llama?"),
        ("fd: {tiny-gpt2: {lr: 1.0}}", "fd: no such name"),
        ("ft: {tiny-gpt2: {lr: {value: 1.0, from: x}}}", "from: no such key; did you mean source?"),
    ],
)
def test_a_fault_names_the_file(monkeypatch, tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "invented.yaml").write_text(text, "utf-8")
    monkeypatch.setattr(editors, "SETTINGS", tmp_path)
    with pytest.raises(EditorError) as caught:
        editors.settings_of("ft", "tiny-gpt2")
    assert str(caught.value).startswith(f"{tmp_path / 'invented.yaml'}: ")
    assert told in str(caught.value)


def test_settings_are_plain_and_the_callers_own() -> None:
    found = editors.settings_of("memit", "gpt-j-6b")
    assert found["blocks"] == [3, 4, 5, 6, 7, 8] and found["moment_weight"] == 15000.0
    found["blocks"].append(9)
    assert editors.settings_of("memit", "gpt-j-6b")["blocks"][-1] == 8
    assert editors.settings_of("t_patcher", "gpt2-xl") == {}
    with pytest.raises(EditorError, match="unknown editor 'memitt'"):
        editors.settings_of("memitt", "gpt2-xl")


@pytest.mark.parametrize("kind", ["ft", "memit", "melo", "grace", "elder"])
def test_an_editor_is_built_from_the_settings_of_its_backbone(kind: str) -> None:
    backbone = load("tiny-llama")
    config = editors.settings_of(kind, backbone.name)
    assert editors.build(kind, backbone, config).config == editors.configured(kind, config)


def test_layers_are_named_in_one_line() -> None:
    config = editors.configured(
        "melo",
        {"sites": "encoder 5-6 mlp_in+mlp_out, decoder 3 mlp_out", "router": "encoder 4 mlp_out"},
    )
    places = [(site.stack, site.block, site.part) for site in config.sites]
    assert places == [
        ("encoder", 5, "mlp_in"), ("encoder", 5, "mlp_out"), ("encoder", 6, "mlp_in"),
        ("encoder", 6, "mlp_out"), ("decoder", 3, "mlp_out"),
    ]  # fmt: skip
    assert editors.configured("memit", {"blocks": "13-17"}).blocks == (13, 14, 15, 16, 17)
    spelled = editors.spelled_out({"sites": "blocks 3-4 mlp_out", "site": "block 7 mlp_in"})
    assert spelled == {
        "sites": [{"part": "mlp_out", "block": 3}, {"part": "mlp_out", "block": 4}],
        "site": {"part": "mlp_in", "block": 7},
    }


@pytest.mark.parametrize(
    "config",
    [
        {"site": "blocks 3-4 mlp_out"}, {"site": "blok 3 mlp_out"}, {"site": "mlp_out 3"},
        {"site": {"part": "mlp_out", "blok": 3}}, {"site": 3}, {"steps": "many"}, {"steps": 2.5},
        {"lr": "1e-2"}, {"steps": True}, {"replacement": "replace_all"}, {"radius": None},
    ],
)  # fmt: skip
def test_wrong_values_are_refused(config: dict) -> None:
    with pytest.raises(EditorError, match=f"grace: {next(iter(config))}"):
        editors.build("grace", load("tiny-gpt2"), config)
