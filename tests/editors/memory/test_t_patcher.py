"""T-Patcher: its losses by hand, its training against a loop over full passes in float64, and what
a patch does and does not touch (elder 7)."""

import copy
import math

import pytest
import torch
from torch import Tensor

from lib.backbones.backbone import Backbone
from lib.backbones.encoding import answer_ids, prompt_ids
from lib.backbones.sources import loading
from lib.backbones.sources.tiny import TEXT
from lib.data.corpus import Corpus
from lib.data.records import Edit
from lib.editors import build
from lib.editors.memory import patches as method
from lib.editors.memory.patches import (
    Patches,
    activation_loss,
    memory_loss,
    strongest,
    train_patches,
)
from lib.editors.memory.t_patcher import TPatcher, TPatcherConfig
from lib.errors import EditorError
from tests.conftest import CAUSAL, edits, generate, make, prompt_logits

pytest_plugins = ("tests.editors.locate.locate_fixtures",)
pytestmark = pytest.mark.usefixtures("statistics_cache")

CORPUS = Corpus("tiny", TEXT)


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def patcher(backbone: Backbone, **changes: object) -> TPatcher:
    quick = {"memory_tokens": 150, "memory_rows": 20}
    return build("t_patcher", backbone, quick | changes, corpus=CORPUS)


# -- the losses ------------------------------------------------------------------------------------


def test_the_activation_loss_is_over_the_least_active_patches() -> None:
    own = torch.tensor([2.0, -1.0, 0.5, 3.0], dtype=torch.float64)
    expected = (math.exp(1.0) + math.exp(-0.5)) / 2
    assert float(activation_loss(own, 2)) == pytest.approx(expected, rel=1e-12)
    every = sum(math.exp(-a) for a in own.tolist()) / 4
    assert float(activation_loss(own, 5)) == pytest.approx(every, rel=1e-12)


def test_the_memory_loss_has_a_margin_to_zero_and_one_to_the_own_token() -> None:
    stored, own = normal(7, 3), normal(3, seed=1)
    terms = [
        math.exp(float(stored[r, p]) + 3) + math.exp(float(stored[r, p] - own[p]) + 3)
        for r in range(7)
        for p in range(3)
    ]
    assert float(memory_loss(stored, own, 3.0)) == pytest.approx(sum(terms) / 21, rel=1e-12)


def test_the_strongest_states_give_the_gradient_of_a_sort_over_all() -> None:
    memory, keys, biases = normal(40, 6), normal(3, 6, seed=1), normal(3, seed=2)
    found = []
    for full in (True, False):
        leaves = [keys.clone().requires_grad_(), biases.clone().requires_grad_()]
        patches = Patches(*leaves, torch.zeros_like(keys))
        if full:
            rows = patches.activations(memory).sort(dim=0, descending=True).values[:8]
        else:
            rows = strongest(patches, memory, 8)
        found.append((rows.detach(), *torch.autograd.grad(rows.exp().mean(), leaves)))
    for slow, fast in zip(*found, strict=True):
        assert torch.allclose(slow, fast, rtol=1e-12, atol=0)


# -- one edit --------------------------------------------------------------------------------------


class Reference:
    """An edit of a copy of the backbone: patches inside full passes, every step written out."""

    def __init__(self, editor: TPatcher) -> None:
        self.c, self.backbone, self.memory = editor.config, editor.backbone, editor.memory
        self.model = copy.deepcopy(editor.backbone.model)
        self.mlp = self.model.get_submodule(editor.backbone.path("mlp", editor.last))
        self.mlp._forward_hooks.clear()

    def run(self, edit: Edit, patches: list[tuple[Tensor, ...]]) -> tuple[Tensor, Tensor, Tensor]:
        """h [N, d] before the last MLP, logits [N, V] and labels [N] of the answer's tokens."""
        prompt, answer = (
            prompt_ids(self.backbone, edit.prompt),
            answer_ids(self.backbone, edit.target),
        )
        seen = []

        def hook(_module: object, inputs: tuple, output: Tensor) -> Tensor:
            seen.append(inputs[0][0])
            for k, b, v in patches:
                output = output + torch.relu(inputs[0] @ k + b)[..., None] * v
            return output

        handle = self.mlp.register_forward_hook(hook)
        logits = self.model(input_ids=torch.tensor([prompt + answer])).logits[0]
        handle.remove()
        at = slice(len(prompt) - 1, len(prompt) + len(answer) - 1)
        return seen[0][at], logits[at], torch.tensor(answer)

    def loss(self, logits: Tensor, labels: Tensor, own: Tensor, keys: Tensor, biases: Tensor):
        log_p, share = logits.log_softmax(dim=-1), method.SMOOTHING
        picked = log_p[range(len(labels)), labels]
        edit = -((1 - share) * picked + share * log_p.mean(dim=-1)).mean()
        stored = (self.memory @ keys.T + biases).sort(dim=0, descending=True).values
        stored = stored[: self.c.memory_rows]
        memory = ((stored + 3).exp() + (stored - own + 3).exp()).mean()
        return edit + (-own).exp().mean() + method.MEMORY_WEIGHT * memory

    def edit(self, edit: Edit) -> tuple[list[Tensor], list[float], list[float]]:
        """Keys, biases, values; the losses and the learning rate of every step."""
        with torch.no_grad():
            hidden, logits, labels = self.run(edit, [])
        wrong = (logits.argmax(dim=-1) != labels).nonzero()[: method.MAX_PATCHES, 0]
        own_hidden = hidden[wrong]
        theta = [
            own_hidden / (own_hidden**2).sum(dim=1, keepdim=True),
            torch.zeros(len(wrong)).double(),
            torch.zeros_like(own_hidden),
            torch.full((len(wrong), 1), method.SCALE).double(),
        ]
        m, v = ([torch.zeros_like(x) for x in theta] for _ in range(2))
        lr, best, bad, losses, rates = self.c.lr, math.inf, 0, [], []
        for t in range(self.c.steps + 1):
            k, b, raw, scale = leaves = [x.clone().requires_grad_() for x in theta]
            _, logits, _ = self.run(edit, list(zip(k, b, scale * raw, strict=True)))
            own = (own_hidden * k).sum(dim=1) + b
            loss = self.loss(logits, labels, own, k, b)
            losses.append(float(loss.detach()))
            if t == self.c.steps:
                return [k.detach(), b.detach(), (scale * raw).detach()], losses, rates
            if t:
                improved = losses[-1] < best * (1 - 1e-4)
                best, bad = (losses[-1], 0) if improved else (best, bad + 1)
                if bad > method.PATIENCE:
                    lr, bad = lr / 2, 0
            rates.append(lr)
            g = torch.autograd.grad(loss, leaves)
            norm = torch.cat([x.flatten() for x in g]).norm()
            for i, x in enumerate(theta):
                gi = g[i] * min(1.0, float(method.CLIP / (norm + 1e-6))) + method.WEIGHT_DECAY * x
                m[i], v[i] = 0.9 * m[i] + 0.1 * gi, 0.999 * v[i] + 0.001 * gi**2
                root = (v[i] / (1 - 0.999 ** (t + 1))).sqrt() + 1e-8
                theta[i] = x - lr * m[i] / (1 - 0.9 ** (t + 1)) / root


@pytest.mark.parametrize("name", CAUSAL)
def test_training_equals_the_plain_loop(name: str, monkeypatch) -> None:
    """With gated MLPs and with GPT-J's parallel ones; the learning rate halves on the way."""
    small = {"CHECK_EVERY": 1, "PATIENCE": 0, "MAX_PATCHES": 3, "WEIGHT_DECAY": 0.05}
    for constant, value in small.items():
        monkeypatch.setattr(method, constant, value)
    editor = patcher(loading.load(name, dtype=torch.float64), steps=8, lr=1.0)
    editor.prepare()
    expected, losses, rates = Reference(editor).edit(edits(1)[0])
    report = editor.edit(edits(1))
    assert report.counts["steps"] == 8
    assert min(rates) < 1.0
    assert report.loss_first == pytest.approx(losses[0], rel=1e-9)
    assert report.loss_last == pytest.approx(losses[-1], rel=1e-6)
    for ours, theirs in zip(vars(editor.patches).values(), expected, strict=True):
        assert (ours - theirs).norm() < 1e-6 * theirs.norm()


@pytest.mark.parametrize("most", [5, 40])
def test_each_wrong_token_starts_a_patch_with_activation_one(most: int, monkeypatch) -> None:
    monkeypatch.setattr(method, "MAX_PATCHES", most)
    editor = patcher(loading.load("tiny-llama", dtype=torch.float64), steps=0)
    (edit,) = edits(1)
    editor.prepare()
    with torch.no_grad():
        hidden, logits, labels = Reference(editor).run(edit, [])
    wrong = (logits.argmax(dim=-1) != labels).nonzero()[:, 0]
    assert 5 < len(wrong) < 40
    before = prompt_logits(editor.backbone, [edit.prompt])
    editor.edit([edit])
    assert len(editor.patches) == min(most, len(wrong))
    own = editor.patches.activations(hidden[wrong[: len(editor.patches)]]).diagonal()
    assert torch.allclose(own, torch.ones_like(own), rtol=1e-12)
    # Values start at zero: nothing is added before the first step.
    assert torch.equal(prompt_logits(editor.backbone, [edit.prompt]), before)


# -- what a finished edit does ---------------------------------------------------------------------


@pytest.mark.parametrize("name", CAUSAL)
def test_a_solved_edit_answers_and_leaves_every_stored_state_alone(name: str, monkeypatch) -> None:
    monkeypatch.setattr(method, "MAX_PATCHES", 20)
    backbone = loading.load(name)
    editor = patcher(backbone, steps=400, memory_tokens=60)
    report = editor.edit(edits(1))
    assert report.counts["solved"] == 1.0 and report.counts["steps"] < 400
    assert report.counts["steps"] % 25 == 0
    (text,) = generate(backbone, [edits(1)[0].prompt], tokens=12)
    assert text.startswith(" " + edits(1)[0].target)
    assert (editor.patches.activations(editor.memory) <= 0).all()
    assert not editor.patches(editor.memory).any()  # exactly nothing is added
    # The answer is right now: the same edit once more needs no patch.
    count = len(editor.patches)
    again = editor.edit(edits(1))
    assert len(editor.patches) == count and again.counts["steps"] == 0


def test_an_edit_that_unrelated_text_would_share_is_not_solved(monkeypatch) -> None:
    monkeypatch.setattr(method, "MAX_PATCHES", 20)
    monkeypatch.setattr(method, "MEMORY_WEIGHT", 0.0)
    editor = patcher(loading.load("tiny-gpt2"), steps=50, lr=0.02)
    editor.prepare()
    with torch.no_grad():
        editor.memory = Reference(editor).run(edits(1)[0], [])[0]  # the answer's own states
    counts = editor.edit(edits(1)).counts
    assert (counts["solved"], counts["steps"]) == (0.0, 50)


def test_earlier_patches_stay_as_they_are() -> None:
    editor = patcher(loading.load("tiny-gpt2"), steps=25)
    editor.edit(edits(1))
    first = editor.patches
    editor.edit(edits(3)[1:])
    assert len(editor.patches) > len(first)
    for now, then in zip(vars(editor.patches).values(), vars(first).values(), strict=True):
        assert torch.equal(now[: len(first)], then)


def test_an_error_inside_a_batch_changes_nothing(monkeypatch) -> None:
    editor = patcher(loading.load("tiny-gpt2"), steps=2)
    editor.edit(edits(1))
    before = editor.patches
    calls = []

    def fail(*arguments: object, **settings: object) -> object:
        calls.append(arguments)
        if len(calls) == 2:  # the patches of one edit are in force by then
            raise RuntimeError("out of memory")
        return train_patches(*arguments, **settings)

    monkeypatch.setattr("lib.editors.memory.t_patcher.train_patches", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        editor.edit(edits(3)[1:])
    assert editor.patches is before and editor.n_edits == 1


def test_without_text_the_remedy_is_named() -> None:
    backbone = loading.load("tiny-gpt2")
    with pytest.raises(EditorError, match="pass corpus="):
        build("t_patcher", backbone, {}).edit(edits(1))
    make("t_patcher", backbone).fit(None)  # its stored states are those of the corpus


def test_a_loss_out_of_range_is_an_error_and_changes_nothing() -> None:
    editor = patcher(loading.load("tiny-gpt2"), lr=1e4, steps=10)
    with pytest.raises(EditorError, match="lower lr"):
        editor.edit(edits(1))
    assert len(editor.patches) == 0


def test_impossible_numbers_are_refused() -> None:
    with pytest.raises(EditorError, match="memory_tokens must be at least 1"):
        patcher(loading.load("tiny-gpt2"), memory_tokens=0)


def test_defaults_are_the_published_ones() -> None:
    c = TPatcherConfig()
    assert (c.lr, c.steps, c.memory_tokens, c.memory_rows) == (1e-2, 2000, 40_000, 1000)
    assert (method.MAX_PATCHES, method.WEIGHT_DECAY, method.CHECK_EVERY) == (5, 0.01, 25)
    assert (method.CLIP, method.SCALE, method.ACTIVATION_ROWS) == (5.0, 10.0, 5)
    assert (method.MEMORY_WEIGHT, method.MARGIN) == (10.0, 3.0)
