"""SERAC: the scope rule, both losses, training and its cache."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lib.backbones.encoding import encode_prompts
from lib.backbones.sources import loading
from lib.editors.base import UNEDITED
from lib.editors.memory import serac_networks
from lib.editors.memory.serac import Serac
from lib.editors.memory.serac_networks import SeracNetworks, exponents, matches
from lib.editors.memory.serac_training import (
    classifier_loss,
    counterfactual_loss,
    descend,
    fact_batches,
    scope_loss,
)
from lib.errors import EditorError
from tests.conftest import edits, stream
from tests.editors.memory.serac_cases import (
    FACTS,
    PROMPTS,
    SETTINGS,
    edited,
    routes,
    serac,
    untrained,
)


@pytest.fixture(scope="module")
def editor() -> Serac:
    """Edited; tests leave it as it is."""
    return edited()


@pytest.fixture(scope="module")
def networks() -> SeracNetworks:
    """Untrained; tests leave them as they are."""
    return untrained()


# -- scope ---------------------------------------------------------------------------------------


def test_the_nearest_edit_matches_above_the_threshold_and_not_at_it(monkeypatch) -> None:
    generator = torch.Generator().manual_seed(0)
    x, z = (torch.randn(n, 5, generator=generator) for n in (4, 3))
    log_scale = torch.tensor(-2.0)
    similarity = torch.stack(
        [
            torch.stack([torch.exp(-(a - b).double().square().sum() * math.exp(-2)) for b in z])
            for a in x
        ]
    )
    found = (-exponents(x, z, log_scale)).exp()
    assert torch.allclose(found.double(), similarity, rtol=1e-5)
    best = found.max(dim=1)

    def matched(inputs: Tensor, threshold: float) -> list[int]:
        monkeypatch.setattr(serac_networks, "THRESHOLD", threshold)
        return matches(inputs, z, log_scale).tolist()

    assert matched(x, 0.0) == similarity.argmax(dim=1).tolist()
    for row in range(4):
        at = best.values[row].item()
        assert matched(x[row : row + 1], at) == [-1]
        assert matched(x[row : row + 1], at - 1e-6) == [best.indices[row].item()]


def test_a_prompt_has_one_key_with_and_without_its_answer(editor: Serac) -> None:
    keys = editor.keys_of(encode_prompts(editor.backbone, PROMPTS))
    carried = editor.keys_of(editor.encoded([*edits()]))
    assert torch.allclose(keys[:6], carried, atol=1e-5)
    g = editor.networks.classifier
    ids = torch.tensor([g.tokenizer(PROMPTS[0])["input_ids"]])
    with torch.no_grad():
        expected = g.model(ids).last_hidden_state[0, 0]
    assert torch.allclose(keys[0], expected, atol=1e-5)
    assert routes(editor)[:4] == [f"edit {i}" for i in range(4)] and UNEDITED in routes(editor)


# -- losses --------------------------------------------------------------------------------------


def test_scope_loss_is_the_weighted_binary_cross_entropy() -> None:
    exponent = torch.tensor([[0.2, 1.5], [3.0, 0.7], [0.9, 4.0]])
    inside = torch.eye(3, 2, dtype=torch.bool)
    s = exponent.double().neg().exp()
    yes = -(s[0, 0].log() + s[1, 1].log()) / 2
    no = -sum((1 - s[i, j]).log() for i, j in ((0, 1), (1, 0), (2, 0), (2, 1))) / 4
    assert scope_loss(exponent, inside, 0.1).item() == pytest.approx(float(0.1 * yes + no))
    assert torch.isfinite(scope_loss(torch.zeros(3, 2), inside, 1.0))


def test_the_classifier_reads_edit_texts_against_all_inputs(networks: SeracNetworks) -> None:
    facts, g = FACTS[:3], networks.classifier

    def embedded(text: str) -> Tensor:
        with torch.no_grad():
            ids = torch.tensor([g.tokenizer(text)["input_ids"]])
            return g.model(ids).last_hidden_state[0, 0].double()

    z = [embedded(f"{f.prompt} {f.target}") for f in facts]
    x = [embedded(f.rephrases[0]) for f in facts] + [embedded(f.locality[0].prompt) for f in facts]
    yes, no = [], []
    for i, a in enumerate(x):
        for j, b in enumerate(z):
            exponent = float((a - b).square().sum() * 0.2)
            (yes if i == j else no).append(
                exponent if i == j else -math.log(1 - math.exp(-exponent))
            )
    expected = 0.3 * sum(yes) / len(yes) + sum(no) / len(no)
    assert len(yes) == 3 and len(no) == 15
    assert classifier_loss(networks, facts, SETTINGS).item() == pytest.approx(expected, rel=1e-3)


def test_the_counterfactual_model_learns_the_answer_behind_edit_and_input(
    networks: SeracNetworks,
) -> None:
    h, terms = networks.counterfactual, []
    for fact in FACTS[:3]:
        before = f"{h.prefix}{fact.prompt} {fact.target}\n{fact.rephrases[0]}"
        start = len(h.tokenizer(before)["input_ids"])
        ids = torch.tensor([h.tokenizer(f"{before} {fact.target}")["input_ids"]])
        with torch.no_grad():
            chances = h.model(ids).logits[0].double().log_softmax(dim=-1)
        terms += [-chances[t - 1, ids[0, t]].item() for t in range(start, ids.shape[1])]
    expected = 0.3 * sum(terms) / len(terms)  # mean over answer tokens, no end mark
    found = counterfactual_loss(networks, FACTS[:3], SETTINGS).item()
    assert found == pytest.approx(expected, rel=1e-4)


# -- training ------------------------------------------------------------------------------------


def test_training_helps_on_held_out_facts() -> None:
    editor = serac(
        scale=0.05, classifier_lr=3e-4, classifier_iterations=128, iterations=24, batch_rows=8
    )
    record = editor.trained.record
    assert record.classifier[-1] < 0.7 * record.classifier[0]
    assert record.counterfactual[-1] < 0.7 * record.counterfactual[0]
    assert record.after["inside"] > record.before["inside"]
    assert record.after["outside"] > record.before["outside"]
    assert not any(w.requires_grad for w in editor.networks.weights().values())
    first, *curve = editor.observe(stream())
    assert first["kind"] == "training" and first["facts"] == 8 and not first["cached"]
    assert len(curve) == len(record.classifier) + len(record.counterfactual)


def test_facts_come_in_epochs_with_a_drawn_wording() -> None:
    batches = list(fact_batches(FACTS[:8], 3, 12, seed=0))
    assert [len(batch) for batch in batches] == [3, 3, 3, 3]
    for epoch in (batches[:2], batches[2:]):
        assert len({fact.identity for batch in epoch for fact in batch}) == 6
    wordings = {fact.rephrases[0] == fact.prompt for batch in batches for fact in batch}
    assert wordings == {True, False}
    assert all(len(fact.rephrases) == 1 for batch in batches for fact in batch)
    assert list(fact_batches(FACTS[:8], 3, 12, seed=1)) != batches
    assert list(fact_batches(FACTS[:8], 3, 0, seed=0)) == []


def test_small_steps_reach_a_weight_of_low_precision() -> None:
    weight = torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    losses = descend([weight], lambda _: weight.sum(), iter([[]] * 60), 1e-4)
    assert len(losses) == 60
    # Each step of 1e-4 alone rounds away beside 1 (the next lower bfloat16 is 0.996).
    assert weight.item() == pytest.approx(0.994, abs=0.003)


def test_only_the_chosen_blocks_are_trained() -> None:
    editor = serac("tiny-gpt2", trained_blocks=2, classifier_blocks=1)
    fresh = loading.load("tiny-gpt2").model.state_dict()
    trained = editor.networks.counterfactual.model.state_dict()
    changed = {name for name in fresh if not torch.equal(fresh[name], trained[name])}
    assert {name.split(".")[1] for name in changed} == {"h", "ln_f"}
    assert {name.split(".")[2] for name in changed if ".h." in name} == {"4", "5"}
    named = [name for name in editor.networks.weights() if name.startswith("classifier.")]
    assert named and all(name.startswith("classifier.encoder.layer.5.") for name in named)
    assert editor.counts()["parameters"] == sum(
        w.numel() for w in editor.networks.weights().values()
    )
    with pytest.raises(EditorError, match="6 blocks"):
        serac(trained_blocks=7).fit(stream())


def test_trained_networks_are_kept_by_content(tmp_path: Path) -> None:
    first = serac(cache=tmp_path).trained
    again = serac(cache=tmp_path).trained
    assert (first.cached, again.cached) == (False, True)
    assert again.key == first.key and again.record == first.record
    for name, weight in first.networks.weights().items():
        assert torch.equal(again.networks.weights()[name], weight)
    assert not serac(cache=tmp_path, lr=0.01).trained.cached
    for file in tmp_path.rglob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:20])
    anew = serac(cache=tmp_path).trained
    assert not anew.cached
    assert torch.equal(anew.networks.log_scale, first.networks.log_scale)
