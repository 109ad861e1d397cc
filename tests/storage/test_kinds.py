"""Every kind of entry that the study keeps: read again, made again when damaged, and another one
where the arithmetic is another."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lib.backbones import checkpoints
from lib.backbones.knowledge import answered, known_facts, likelihoods
from lib.backbones.sources import loading
from lib.backbones.text_states import KeyText, second_moments, stored_states
from lib.backbones.tuning.classes import ClassifierConfig, tune_classifier
from lib.backbones.tuning.questions import TuningConfig, tune_question_answering
from lib.data.embedded import bigbench, tables
from lib.data.embedded.triples import Fact
from lib.editors import build
from lib.evaluation.evaluator import Protocol
from lib.evaluation.general.ability import GeneralTasks
from lib.runs.execute import execute
from lib.runs.progress import LineProgress
from lib.runs.resources import Resources
from lib.runs.store import Store
from lib.storage import archives
from lib.storage.cache import Cache
from tests.conftest import configuration, edits
from tests.editors.hypernet.malmen_cases import learner, trained
from tests.editors.locate.locate_cases import CORPUS, FIRST, as_edits, editor_of
from tests.editors.memory.serac_cases import serac
from tests.runs.test_execute import results, smoke_runs

pytest_plugins = ("tests.data.embedded.embedded_fixtures",)

FACTS = [
    Fact("capital", "Norland", ("Aster",), "invented"),
    Fact("capital", "Sorland", ("Brask", "Tilse"), "invented"),
]
CLAIMS = [("The mill stands still.", "0"), ("The mill turns.", "1")]


def conversion(root: Path) -> dict[str, Any]:
    def convert(archive: Path, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"weights of " + str(archive).encode())
        (folder / "tokenizer.json").write_bytes(b"{}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(archives, "fetch", Path)
        folder = checkpoints.converted("mill", "minilm", convert)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def tuned_questions(root: Path) -> dict[str, Any]:
    quick = TuningConfig(epochs=1, learning_rate=1e-2)
    pairs = [(edit.prompt, edit.target) for edit in edits(3)]
    return tune_question_answering(loading.load("tiny-t5"), pairs, quick).model.state_dict()


def tuned_classes(root: Path) -> dict[str, Any]:
    base = loading.load("tiny-bert", num_labels=2)
    quick = ClassifierConfig(learning_rate=1e-3)
    return tune_classifier(base, CLAIMS, {"claims": CLAIMS}, quick).model.state_dict()


def knowledge(root: Path) -> dict[str, Any]:
    return vars(known_facts(loading.load("tiny-llama"), FACTS, cap=None))


def likelihood(root: Path) -> dict[str, Any]:
    return likelihoods(loading.load("tiny-llama"), edits(3), cap=3).answers


def answers(root: Path) -> dict[str, Any]:
    return dict.fromkeys(answered(loading.load("tiny-llama"), edits(3)), True)


def moments(root: Path) -> dict[str, Any]:
    found = second_moments(loading.load("tiny-gpt2"), (1, 2), CORPUS, KeyText(tokens=1))
    return {f"{block} {k}": v for block, m in found.items() for k, v in vars(m).items()}


def states(root: Path) -> dict[str, Any]:
    backbone = loading.load("tiny-llama")
    # As read they are a window into the file, which the test damages in place.
    return {"states": stored_states(backbone, "mlp", 3, CORPUS, KeyText(30, 20)).clone()}


def hyper_network(root: Path) -> dict[str, Any]:
    return trained(learner("malmen", loading.load("tiny-gpt2"), root))


def serac_networks(root: Path) -> dict[str, Any]:
    return serac(cache=root).trained.networks.weights()


def lora_block(root: Path) -> dict[str, Any]:
    backbone = loading.load("tiny-gpt2")
    editor = build("melo", backbone, configuration("melo", backbone), blocks_cache=Cache(root))
    report = editor.edit(edits(2))
    return {**editor.lora.read(0), "first": report.loss_first, "last": report.loss_last}


def target_values(root: Path) -> dict[str, Any]:
    editor = editor_of("memit", loading.load("tiny-gpt2"))
    editor.values_cache = Cache(root)
    report = editor.edit(as_edits(FIRST))
    return {**editor.tensors()["weights"], "last": report.loss_last}


def before_editing(root: Path) -> dict[str, Any]:
    plain, store = smoke_runs()["FT"], Store(root)
    run = replace(plain, spec=plain.spec | {"threads": torch.get_num_threads()})
    shutil.rmtree(store.root / store.told(run).identity, ignore_errors=True)
    assert execute(run, store, Resources(), LineProgress(""))
    return results(store, run).to_dict("list")


def general_tasks(root: Path) -> dict[str, Any]:
    editor = SimpleNamespace(backbone=loading.load("tiny-gpt2"))
    tasks = GeneralTasks(editor, Protocol(lm_eval=("rte",)), None, {}, Cache(root))
    tasks._measured = lambda moment: [{"moment": moment, "score": 0.25}]
    return tasks.rows("before")[0]


ON_BACKBONES = {
    "tuned": [tuned_questions, tuned_classes],
    "knowledge": [knowledge],
    "likelihood": [likelihood],
    "answered": [answers],
    "statistics": [moments],
    "states": [states],
    "networks": [hyper_network, serac_networks],
    "blocks": [lora_block],
    "values": [target_values],
    "before": [before_editing],
    "general": [general_tasks],
}
PAIRS = [(kind, use) for kind, uses in ON_BACKBONES.items() for use in uses]
on_backbones = pytest.mark.parametrize(("kind", "use"), PAIRS, ids=[u.__name__ for _, u in PAIRS])


@pytest.fixture(autouse=True)
def one_thread(tmp_path: Path, monkeypatch) -> Iterator[None]:
    monkeypatch.setenv("STUDY_CACHE", str(tmp_path / "user"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def entries(root: Path, kind: str) -> dict[Path, bytes]:
    """Files of the entries of a kind, wherever below `root`: neither locks nor leftovers."""
    found = [path for path in root.rglob(f"{kind}/**/*") if path.is_file()]
    return {
        path: path.read_bytes()
        for path in found
        if not any(part.startswith(".") for part in path.relative_to(root).parts)
    }


def equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    def same(a: object, b: object) -> bool:
        return torch.equal(a, b) if isinstance(a, Tensor) else str(a) == str(b)

    return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)


def check(kind: str, use: Callable[[Path], dict[str, Any]], root: Path) -> None:
    """The second call reads; a flipped bit in every file is noticed, and all is made again."""
    first = use(root)
    kept = entries(root, kind)
    assert kept
    assert equal(use(root), first) and entries(root, kind) == kept
    for path, content in kept.items():
        path.write_bytes(content[:-2] + bytes([content[-2] ^ 4]) + content[-1:])
    damaged = entries(root, kind)
    assert equal(use(root), first)
    mended = entries(root, kind)
    assert mended.keys() == kept.keys()
    assert all(mended[path] != content for path, content in damaged.items())
    assert equal(use(root), first) and entries(root, kind) == mended


@on_backbones
def test_a_damaged_entry_is_noticed_and_made_again(kind: str, use: Any, tmp_path: Path) -> None:
    check(kind, use, tmp_path)


@on_backbones
def test_two_threads_do_not_take_what_one_has_made(kind: str, use: Any, tmp_path: Path) -> None:
    use(tmp_path)
    before = entries(tmp_path, kind)
    torch.set_num_threads(2)
    use(tmp_path)
    after = entries(tmp_path, kind)
    assert before.items() < after.items()
    torch.set_num_threads(1)
    use(tmp_path)
    assert entries(tmp_path, kind) == after


def test_a_damaged_conversion_is_made_again(tmp_path: Path) -> None:
    check("backbones", conversion, tmp_path)


@pytest.mark.parametrize("source", ["bigbench", "tables"])
def test_damaged_rows_are_made_again(source: str, embedded_archives, tmp_path: Path) -> None:
    def use(_root: Path) -> dict[str, Any]:
        bigbench._read.cache_clear()
        tables._read.cache_clear()
        return {"rows": tables.rows() if source == "tables" else bigbench.rows("triples")}

    check(f"data/{source}", use, embedded_archives["cache"])
