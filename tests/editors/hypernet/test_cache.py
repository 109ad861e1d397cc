"""The cache of trained hyper-networks: what it reads back, what it asks anew, and damage."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lib.backbones.passes.kept import Kept
from lib.backbones.sources import loading
from tests.conftest import stream
from tests.editors.hypernet.malmen_cases import (
    before_each_step,
    curve_of,
    facts_for,
    learner,
    same,
    trained,
    training,
)


def refuse(facts: Any) -> None:
    raise AssertionError("a cached network was trained again")


def test_a_trained_network_is_read_and_not_trained_again(tmp_path: Path) -> None:
    backbone = loading.load("tiny-gpt2")
    first = learner("malmen", backbone, tmp_path)
    network = trained(first)
    second = learner("malmen", backbone, tmp_path)
    before_each_step(second, refuse)
    assert same(trained(second), network)
    assert curve_of(second) == curve_of(first)
    rows = [next(editor.observe(stream())) for editor in (first, second)]
    assert [(row["kind"], row["cached"]) for row in rows] == [
        ("training", False),
        ("training", True),
    ]
    facts = facts_for(backbone, 2, start=7)
    ours, theirs = first.shifts_of(facts), second.shifts_of(facts)
    assert all(torch.equal(ours[path], theirs[path]) for path in ours)


@pytest.mark.parametrize(
    "change",
    [
        {"m": 3},
        {"seed": 1},
        {"start": 1},
        {"kind": "mend"},
        {"backbone": "tiny-gptj"},
        {"meta_lr": 2e-2},
        {"rank": 5},
        {"batch_rows": 3},
        {"sites": [{"part": "mlp_out", "block": 3}]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_question_is_another_network(change: dict[str, Any], tmp_path: Path) -> None:
    values = {"m": 2, "kind": "malmen", "backbone": "tiny-gpt2", "start": 0}
    trained_steps: list[int] = []
    for asked in (values, values | change):
        rest = dict(asked)
        backbone = loading.load(rest.pop("backbone"))
        m, kind, start = rest.pop("m"), rest.pop("kind"), rest.pop("start")
        editor = learner(kind, backbone, tmp_path, training=training(backbone, start), **rest)
        trained_steps.clear()
        before_each_step(editor, lambda facts: trained_steps.append(1))
        trained(editor, m)
        assert trained_steps


def test_where_rows_are_stored_decides_nothing(tmp_path: Path) -> None:
    backbone = loading.load("tiny-gpt2")
    network = trained(learner("malmen", backbone, tmp_path / "a"))
    full = Kept(limit=1)
    assert same(trained(learner("malmen", backbone, tmp_path / "b", kept=full)), network)


def test_a_damaged_cache_entry_is_trained_anew(tmp_path: Path) -> None:
    backbone = loading.load("tiny-gpt2")
    network = trained(learner("malmen", backbone, tmp_path))
    for file in tmp_path.rglob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:20])
    assert same(trained(learner("malmen", backbone, tmp_path)), network)
