"""Key statistics: one pass for all layers, cached, and interrupted without harm (notes, 2.9)."""

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from lib.backbones import text_states
from lib.backbones.backbone import Backbone
from lib.backbones.sources import loading
from lib.backbones.text_states import KeyText, estimate, second_moments
from lib.data import corpus
from lib.data.corpus import Corpus
from tests.editors.locate.locate_cases import CORPUS, LAYERS, gap
from tests.editors.locate.reference_updates import moments

pytest_plugins = ("tests.editors.locate.locate_fixtures",)

INVENTED = corpus.load("invented")
LONG = KeyText(tokens=4000)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """Statistics of each test apart."""
    monkeypatch.setenv("STUDY_CACHE", str(tmp_path / "cache"))


@contextlib.contextmanager
def passes(backbone: Backbone) -> Iterator[list[int]]:
    """The shapes of the model's passes inside the context."""
    seen: list[int] = []
    handle = backbone.module("embedding").register_forward_hook(
        lambda _module, inputs, _output: seen.append(inputs[0].numel())
    )
    try:
        yield seen
    finally:
        handle.remove()


def test_one_pass_for_all_layers_equals_a_float64_pass_for_each(causal: Backbone) -> None:
    layers = (0, *LAYERS, 5)
    with passes(causal) as together:
        ours = second_moments(causal, layers, CORPUS, KeyText(tokens=1))
    assert len(together) == 1
    theirs = moments(causal, CORPUS.texts, layers)
    tokens = sum(len(causal.tokenizer(text)["input_ids"]) for text in CORPUS.texts)
    for layer in layers:
        assert ours[layer].matrix.dtype == torch.float32
        assert gap(ours[layer].matrix, theirs[layer]) <= 1e-5
        assert (ours[layer].count, ours[layer].documents) == (tokens, len(CORPUS.texts))


@pytest.mark.parametrize("columns", [7, 24, 400])
def test_sums_by_upper_blocks_equal_the_whole_product(columns: int, monkeypatch) -> None:
    monkeypatch.setattr(text_states, "COLUMNS", columns)
    total, plain = torch.zeros(96, 96), torch.zeros(96, 96, dtype=torch.float64)
    for seed in range(3):
        keys = torch.randn(50, 96, generator=torch.Generator().manual_seed(seed))
        text_states.add_outer(total, keys)
        plain += keys.double().T @ keys.double()
    found = text_states.symmetric(total)
    assert torch.equal(found, found.T)
    assert gap(found, plain) <= 1e-6


def test_documents_are_cut_and_counted_out(causal: Backbone) -> None:
    texts = (*CORPUS.texts, "A", " ", CORPUS.texts[0])
    ours = second_moments(causal, LAYERS, Corpus("cut", texts), KeyText(10**6, 9, 9))
    theirs = moments(causal, texts[:9], LAYERS, length=9)
    for layer in LAYERS:
        assert ours[layer].documents == 9
        assert gap(ours[layer].matrix, theirs[layer]) <= 1e-5


def test_a_second_call_makes_no_pass_and_a_larger_sample_goes_on_from_a_smaller_one() -> None:
    backbone = loading.load("tiny-gptj")
    with passes(backbone) as small:
        first = second_moments(backbone, LAYERS, INVENTED, KeyText(tokens=1500))
    with passes(backbone) as again:
        second = second_moments(backbone, LAYERS, INVENTED, KeyText(tokens=1500))
    with passes(backbone) as more:
        grown = second_moments(backbone, LAYERS, INVENTED, LONG)
    with passes(backbone) as other:
        second_moments(backbone, (3,), INVENTED, LONG)
    assert not again
    assert sum(more) < sum(other) <= sum(more) + sum(small)
    for layer in LAYERS:
        assert torch.equal(first[layer].matrix, second[layer].matrix)
        assert 1500 <= first[layer].count < 4000 <= grown[layer].count


def interrupt(monkeypatch: pytest.MonkeyPatch, backbone: Backbone) -> None:
    """A pass that writes its progress after every group and is killed in the fourth."""
    monkeypatch.setattr(text_states, "CHECKPOINT_SECONDS", -1.0)
    add, groups = text_states.add_documents, []

    def killed(*arguments):
        groups.append(arguments)
        if len(groups) == 4:
            raise KeyboardInterrupt
        return add(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(text_states, "add_documents", killed)
        with pytest.raises(KeyboardInterrupt):
            second_moments(backbone, LAYERS, INVENTED, LONG)


def test_an_interrupted_pass_goes_on_to_the_same_bits(monkeypatch, tmp_path) -> None:
    backbone = loading.load("tiny-gpt2")
    with passes(backbone) as unbroken:
        whole = second_moments(backbone, LAYERS, INVENTED, LONG)
    monkeypatch.setenv("STUDY_CACHE", str(tmp_path / "other"))
    interrupt(monkeypatch, backbone)
    with passes(backbone) as rest:
        resumed = second_moments(backbone, LAYERS, INVENTED, LONG)
    assert 0 < sum(rest) < sum(unbroken)
    for layer in LAYERS:
        assert torch.equal(resumed[layer].matrix, whole[layer].matrix)
        assert resumed[layer].count == whole[layer].count


def test_the_progress_of_a_killed_pass_is_deleted_when_it_is_done(monkeypatch, tmp_path) -> None:
    """Each such file is as large as the result: 1 GiB per layer of a GPT-J."""
    backbone = loading.load("tiny-gpt2")
    interrupt(monkeypatch, backbone)
    second_moments(backbone, LAYERS, INVENTED, LONG)
    assert len(list(tmp_path.rglob("*.safetensors"))) == len(LAYERS)


def test_a_sum_that_a_killed_process_was_writing_is_swept(tmp_path) -> None:
    backbone = loading.load("tiny-gpt2")
    second_moments(backbone, LAYERS, INVENTED, KeyText(tokens=1500))
    for done in list(tmp_path.rglob("*-part")):
        shutil.copytree(done, done.with_name(f".{done.name}.0123abcd"))
    second_moments(backbone, LAYERS, INVENTED, LONG)
    assert len(list(tmp_path.rglob("*-part"))) == 2 * len(LAYERS)
    assert not list(tmp_path.rglob(".*.0123abcd"))


def test_the_size_is_said_before_the_pass_starts(capsys, monkeypatch) -> None:
    backbone = loading.load("tiny-gpt2")
    said = estimate(backbone, LAYERS, LONG)
    assert said.megabytes == pytest.approx(len(LAYERS) * 4 * 128**2 / 1e6)

    def stop(*_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(text_states, "add_documents", stop)
    with pytest.raises(KeyboardInterrupt):
        second_moments(backbone, LAYERS, INVENTED, LONG)
    assert str(said) in capsys.readouterr().err


def test_other_text_other_length_and_other_prefix_are_other_statistics() -> None:
    backbone = loading.load("tiny-llama")
    variants = [
        (backbone, CORPUS, KeyText(tokens=1)),
        (backbone, Corpus("tiny", CORPUS.texts[1:]), KeyText(tokens=1)),
        (backbone, CORPUS, KeyText(tokens=1, length=9)),
        (replace(backbone, prefix=""), CORPUS, KeyText(tokens=1)),
    ]
    found = [second_moments(b, LAYERS[:1], text, s)[LAYERS[0]].matrix for b, text, s in variants]
    for number, one in enumerate(found):
        for other in found[number + 1 :]:
            assert gap(one, other.double()) > 1e-3
