"""Defer against a transcription of the official rule, what it decides, and what is kept."""

from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor, nn

from lib.backbones.backbone import Backbone
from lib.backbones.encoding import encode, encode_prompts
from lib.backbones.passes import decoding
from lib.backbones.sources import loading
from lib.data.records import Edit
from lib.editors.base import UNEDITED
from lib.editors.memory.defer import Defer
from lib.evaluation.scoring import score_batch
from tests.conftest import edits, generate, make, prompt_logits

BACKBONES = ("tiny-llama", "tiny-gpt2", "tiny-t5", "tiny-bert")
EXACT = 1e-5
"""float64; T5 norms and all losses are in float32, whose rounding Adam lifts."""


@pytest.fixture(params=BACKBONES)
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return loading.load(request.param, dtype=torch.float64)


@pytest.fixture
def batches(backbone: Backbone) -> tuple[tuple[Edit, ...], ...]:
    """Three batches, the last one short."""
    chosen = edits(5, classes=backbone.family.kind == "classifier")
    return chosen[:2], chosen[2:4], chosen[4:]


class Official(nn.Module):
    """The layer and, around it, the official rule for one unpadded row at a time."""

    def __init__(self, editor: Defer) -> None:
        super().__init__()
        self.layer = editor.layer
        d_in, d_out = (editor.deferral["map"].weight.shape[i] for i in (1, 0))
        self.gate = nn.Linear(d_in, 1, dtype=torch.float64)
        self.map = nn.Linear(d_in, d_out, dtype=torch.float64)
        self.gate.load_state_dict(editor.deferral["gate"].state_dict())
        self.map.load_state_dict(editor.deferral["map"].state_dict())
        self.position = -1
        self.learns = False

    @property
    def weight(self) -> Tensor:
        """T5 asks its matrices for their precision."""
        return self.layer.weight

    def forward(self, hidden: Tensor) -> Tensor:
        own, token = self.layer(hidden), hidden[:, self.position]
        opened, value = self.gate(token).sigmoid()[:, None], self.map(token)[:, None]
        if self.learns:
            return opened * value + (1 - opened) * own
        return value.expand_as(own) if opened.item() >= 0.5 else own


class Reference:
    """The official rule in a backbone of its own; rows are read one by one."""

    def __init__(self, editor: Defer) -> None:
        self.backbone = loading.load(editor.backbone.name, dtype=torch.float64)
        self.rule = Official(editor)
        parent, _, name = editor.path.rpartition(".")
        model = self.backbone.model
        self.rule.layer = model.get_submodule(editor.path)
        setattr(model.get_submodule(parent), name, self.rule)

    def loss(self, edit: Edit) -> tuple[Tensor, int]:
        """Summed cross-entropy over one row's labels, and how many there are."""
        row = encode(self.backbone, [edit.prompt], [edit.target])
        causal = self.backbone.family.kind == "causal"
        # The number of ignored labels is the place of the first target token.
        self.rule.position = int((row.labels == -100).sum()) if causal else -1
        outputs = self.backbone.model(input_ids=row.input_ids, labels=row.labels)
        count = int((row.labels != -100).sum())
        return outputs.loss * count, count

    def edit(self, batch: Sequence[Edit], steps: int, lr: float) -> list[float]:
        """Losses of all steps: the mean over the label tokens of the batch."""
        self.rule.learns, losses = True, []
        trained = [*self.rule.gate.parameters(), *self.rule.map.parameters()]
        optimiser = torch.optim.Adam(trained, lr=lr)
        for _ in range(steps):
            sums, counts = zip(*(self.loss(edit) for edit in batch), strict=True)
            loss = sum(sums) / sum(counts)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        self.rule.learns = False
        return losses

    @torch.no_grad()
    def logits(self, prompt: str) -> Tensor:
        """What `prompt_logits` gives [V], of one prompt, read at its last token."""
        self.rule.position = -1
        return prompt_logits(self.backbone, [prompt])[0]

    def opened(self, edit: Edit) -> bool:
        """Whether the gate is open at the token that a row with its target is read at."""
        seen: list[Tensor] = []
        handle = self.rule.gate.register_forward_hook(lambda _m, _i, out: seen.append(out))
        with torch.no_grad():
            self.loss(edit)
        handle.remove()
        return seen[-1].item() >= 0


@pytest.fixture
def pair(backbone: Backbone) -> Iterator[tuple[Defer, Reference]]:
    editor = make("defer", backbone, steps=5, lr=0.05)
    yield editor, Reference(editor)
    editor.close()


def test_consecutive_batches_equal_the_official_rule(
    pair: tuple[Defer, Reference], batches: tuple[tuple[Edit, ...], ...]
) -> None:
    editor, reference = pair
    backbone = editor.backbone
    prompts = [edit.prompt for edit in edits()] + ["who wrote the first letter?", "Name: Ash."]
    before = prompt_logits(backbone, prompts)
    for batch in batches:
        report = editor.edit(batch)
        losses = reference.edit(batch, editor.config.steps, editor.config.lr)
        assert report.loss_first == pytest.approx(losses[0], rel=EXACT)
        assert report.loss_last == pytest.approx(losses[-1], rel=EXACT)
        for name, ours in editor.deferral.state_dict().items():
            theirs = reference.rule.get_parameter(name)
            assert torch.allclose(ours, theirs, rtol=0, atol=EXACT)
        found = prompt_logits(backbone, prompts)
        expected = torch.stack([reference.logits(prompt) for prompt in prompts])
        assert torch.allclose(found, expected, rtol=EXACT, atol=EXACT)
    assert (found - before).abs().amax() > 1e-2


def test_a_shut_gate_leaves_a_row_alone_and_an_open_one_does_not(backbone: Backbone) -> None:
    """The gate is set so that it parts the prompts; each row has one decision."""
    editor = make("defer", backbone)
    chosen = edits(6, classes=backbone.family.kind == "classifier")
    prompts = [edit.prompt for edit in chosen]
    before = prompt_logits(backbone, prompts)
    editor.edit(chosen[:2])
    encoded = encode_prompts(backbone, prompts)
    keys = editor.keys_of(encoded)
    with torch.no_grad():
        middle = editor.deferral["gate"](keys) - editor.deferral["gate"].bias
        editor.deferral["gate"].bias.copy_(-middle.flatten().sort().values[2:4].mean())
    routes = editor.route(encoded)
    assert 0 < routes.count(UNEDITED) < len(prompts)
    reference = Reference(editor)
    after = prompt_logits(backbone, prompts)
    for row, prompt in enumerate(prompts):
        left = routes[row] == UNEDITED
        assert torch.equal(after[row], before[row]) is left
        assert torch.allclose(after[row], reference.logits(prompt), rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gpt2", "tiny-t5"])
def test_scores_of_given_targets_equal_the_official_rule(name: str) -> None:
    """Rows are read with their targets: a causal row at its first target token, for all of it."""
    backbone = loading.load(name, dtype=torch.float64)
    editor = make("defer", backbone, steps=5, lr=0.05)
    editor.edit(edits(2))
    editor.edit(edits(4)[2:])
    rows = edits(6)
    prompts, targets = zip(*((edit.prompt, edit.target) for edit in rows), strict=True)
    full = editor.keys_of(encode(backbone, prompts, targets))
    with torch.no_grad():
        middle = editor.deferral["gate"](full) - editor.deferral["gate"].bias
        editor.deferral["gate"].bias.copy_(-middle.flatten().sort().values[2:4].mean())
    routes = editor.routes_of(full)
    reference = Reference(editor)
    assert [route != UNEDITED for route in routes] == [reference.opened(edit) for edit in rows]
    assert 0 < routes.count(UNEDITED) < len(rows)
    prepared = decoding.prepare(backbone, editor.prefix, prompts, targets, watch=editor.watch)
    decode = editor.routes_of(editor.keys_from(prepared.state, prepared.prompts))
    scored = score_batch(editor, prepared, decode, routes, 0)
    for edit, found in zip(rows, scored, strict=True):
        with torch.no_grad():
            total, count = reference.loss(edit)
        # Scores are written in float32.
        assert found.nll == pytest.approx(float(total) / count, rel=1e-5)


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gpt2"])
def test_text_is_written_under_the_decision_at_the_prompt(name: str) -> None:
    """Without a cache, the value is placed anew at all positions, those of new tokens too."""
    backbone = loading.load(name, dtype=torch.float64)
    editor = make("defer", backbone)
    editor.edit(edits(3))
    reference = Reference(editor)
    prompt = edits(1)[0].prompt
    encoded = encode_prompts(backbone, [prompt])
    assert editor.route(encoded) != [UNEDITED]
    ids, start = encoded.input_ids, encoded.input_ids.shape[1]
    reference.rule.position = start - 1
    with torch.no_grad():
        for _ in range(6):
            following = reference.backbone.model(input_ids=ids).logits[:, -1].argmax(-1)
            ids = torch.cat([ids, following[:, None]], dim=1)
    expected = backbone.tokenizer.decode(ids[0, start:], skip_special_tokens=True)
    assert generate(backbone, [prompt], tokens=6) == [expected]


def test_the_key_is_read_at_the_first_target_token() -> None:
    backbone = loading.load("tiny-llama")
    prompts, targets = ["Ash", "The ferry of Ash"], ["Nettle Quay", "Port Ost"]
    batch = encode(backbone, prompts, targets)
    editor = make("defer", backbone)
    state = editor.prefix.record(batch, watch=editor.watch)
    place = (batch.labels != -100).float().argmax(dim=1)
    expected = state.watched_inputs[editor.path][torch.arange(2), place]
    assert torch.equal(editor.keys_from(state, batch), expected) and editor.keys_see_target
    editor.close()
    editor = make("defer", backbone, key_position="last_prompt_token")
    expected = state.watched_inputs[editor.path][torch.arange(2), place - 1]
    assert torch.equal(editor.keys_from(state, batch), expected) and not editor.keys_see_target


def test_gate_and_map_begin_as_linear_layers_do() -> None:
    backbone = loading.load("tiny-llama")
    one, other = (make("defer", backbone, seed=seed).deferral for seed in (0, 1))
    width = one["map"].in_features
    torch.manual_seed(0)
    gate = nn.Linear(width, 1)
    assert torch.equal(one["gate"].weight, gate.weight)
    assert torch.equal(one["gate"].bias, gate.bias)
    assert not torch.equal(one["gate"].weight, other["gate"].weight)
    drawn = torch.cat([one["map"].weight.flatten(), one["map"].bias]) * width**0.5
    assert 0.95 < drawn.abs().max() <= 1 and one["map"].bias.abs().max() > 0


def test_a_later_batch_trains_the_same_gate_and_map_on(
    backbone: Backbone, batches: tuple[tuple[Edit, ...], ...]
) -> None:
    editor = make("defer", backbone)
    editor.edit(batches[0])
    gate, size = editor.deferral["gate"].weight.clone(), editor.counts()["parameters"]
    editor.edit(batches[1])
    assert not torch.equal(editor.deferral["gate"].weight, gate)
    assert editor.counts() == {"parameters": size, "stored_floats": 0}
    width, out = editor.deferral["map"].in_features, editor.deferral["map"].out_features
    assert size == (width + 1) * (out + 1)


def test_saved_edits_answer_alike(
    backbone: Backbone, batches: tuple[tuple[Edit, ...], ...], tmp_path
) -> None:
    editor = make("defer", backbone)
    editor.edit(batches[0])
    prompts = [edit.prompt for edit in batches[0]]
    expected = prompt_logits(backbone, prompts)
    editor.save(tmp_path / "saved")
    editor.close()
    other = make("defer", backbone)
    other.load(tmp_path / "saved")
    assert torch.equal(prompt_logits(backbone, prompts), expected)


def test_half_precision_trains_in_single() -> None:
    backbone = loading.load("tiny-llama", dtype=torch.bfloat16)
    editor = make("defer", backbone)
    report = editor.edit(edits(3))
    assert {p.dtype for p in editor.deferral.parameters()} == {torch.float32}
    assert report.loss_last < report.loss_first
