"""WISE: a side memory beside one MLP matrix, chosen by activation (Wang et al., NeurIPS 2024).

W is the main memory; the side memory W' starts as its copy and is what edits train. phi is the
model's MLP activation, which the released code applies to the layer's *output*.

    activation of a row   D(W') = mean over its tokens of |phi(W x) - phi(W' x)|
    loss                  L = L_edit + <gamma + out - in> + <out - alpha> + <beta - in>
                          in, out: D of the edit's rows and of an unrelated one; <z>: the mean of
                          the positive entries of z
    step                  W' <- clamp(W' - lr (grad L + decay W') * M, W - c, W + c)
    sharding              M is 1 at a share of W, drawn anew after every `shard_edits` edits, when
                          W' goes to the finished memories and starts as W again
    merging               after every `merge_edits` edits the shards since then become one (TIES)
    routing               a row is answered by the memory of the largest D, if D >= r a; else by W.
                          a: the smallest mean of `in` that an edit ended with

Written from the study's notes on the released code (wise 2), which is the authority: the paper's
own text was not seen. Ours: the decay keeps to the mask (as released it does not: `masked_decay`);
pads do not count in D (`pads_in_distance`); a row is routed once, on its prompt, and keeps its
memory while it is answered (as released, by whole rows where answers are teacher-forced:
`sees_target`; and at every new token, which is not offered); D is a mean whatever the length
(released: the largest above 100 tokens); the layer's bias is kept; masks and contexts have seeds;
a shard answers until it is merged in both kinds of memory. Replay of earlier edits, which every
released configuration switches off, is left out.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import ACT2FN

from lib.backbones.backbone import Backbone
from lib.backbones.encoding import IGNORED, Encoded, answer_ids, batch_rows, pad, prompt_ids
from lib.backbones.passes.hooks import first_tensor
from lib.backbones.passes.logits import precise, target_logits
from lib.backbones.passes.prefix import FrozenPrefix, PrefixState
from lib.data.records import Edit, Stream
from lib.data.training import TrainingFacts
from lib.editors.base import UNEDITED, Editor, EditorConfig, EditReport
from lib.editors.locate.subjects import head_length, sample_contexts
from lib.editors.parts.routing import PrefillRouter
from lib.editors.parts.sites import Site, first_block
from lib.errors import EditorError

UNSEEN = 1e9
"""a of a memory without edits."""
STEADY, SMALL = 1e-4, 0.02
"""An edit ends where L changes by no more than the one and is no more than the other."""


@dataclass(frozen=True)
class WiseConfig(EditorConfig):
    """Defaults: the released ones for LLaMA-2-7B. `alpha`, `beta`, `gamma` are norms of the layer's
    output, and mean something else on every model; `act_ratio` is r, `mask_ratio` the share of
    ones in M, `norm_constraint` c, `density` the share of a shard's changes that a merge keeps.
    `contexts`: groups of texts in front of the prompt, each (tokens, how many), beside the prompt
    alone. `memory` "retrieve" keeps one memory for each merge, "merge" a single one."""

    site: Site = Site("mlp_out", 27)
    lr: float = 1.0
    steps: int = 70
    weight_decay: float = 1e-5
    alpha: float = 5.0
    beta: float = 20.0
    gamma: float = 10.0
    act_ratio: float = 0.88
    mask_ratio: float = 0.2
    norm_constraint: float = 1.0
    contexts: tuple[tuple[int, int], ...] = ((5, 5), (10, 5))
    shard_edits: int = 500
    merge_edits: int = 1000
    density: float = 0.53
    memory: Literal["retrieve", "merge"] = "retrieve"
    masked_decay: bool = True
    pads_in_distance: bool = False
    sees_target: bool = False


# -- the method ------------------------------------------------------------------------------------


def activations(
    main: Tensor, side: Tensor, counted: Tensor, phi: Callable[[Tensor], Tensor]
) -> Tensor:
    """D of each row [B], of the layer's outputs under W and W' [B, T, d] at the tokens that
    `counted` [B, T] marks. Its gradient where both are equal is zero."""
    gaps = (phi(main) - phi(side)).norm(dim=-1)
    return (gaps * counted).sum(dim=1) / counted.sum(dim=1)


def violation(values: Tensor) -> Tensor:
    """<z>: the mean of the positive entries, 0 if there is none. One row that violates a margin
    among many counts whole."""
    positive = values > 0
    return (values * positive).sum() / positive.sum().clamp(min=1)


def margin_loss(inside: Tensor, outside: Tensor, alpha: float, beta: float, gamma: float) -> Tensor:
    """L_act of the activations of edit rows [R] and of unrelated ones [1]."""
    terms = (gamma + outside - inside, outside - alpha, beta - inside)
    return sum(map(violation, terms))


def edit_term(losses: Tensor, answer: int) -> Tensor:
    """L_edit of the cross-entropies at all answer tokens, the rows' answers being `answer` tokens
    long: the released window holds one position more, which counts in the divisor alone."""
    return losses.mean() * answer / (answer + 1)


def stepped(
    side: Tensor, gradient: Tensor, mask: Tensor, main: Tensor, config: WiseConfig
) -> Tensor:
    """W' after one step of SGD. As released (not `masked_decay`) the decay moves entries outside
    the mask too."""
    gradient, decay = gradient * mask, config.weight_decay * side
    decay = decay * mask if config.masked_decay else decay
    moved = side - config.lr * (gradient + decay)
    return moved.clamp(main - config.norm_constraint, main + config.norm_constraint)


def ties(main: Tensor, sides: Sequence[Tensor], weights: Sequence[float], density: float) -> Tensor:
    """W plus the merged changes of some memories. Of each change the largest entries are kept, a
    share `density`; of an entry, the weighted mean of those that have the sign of their sum."""
    changes = [w * _largest(side - main, density) for side, w in zip(sides, weights, strict=True)]
    sign = torch.where(sum(changes) >= 0, 1.0, -1.0)
    agree = [(change.sign() == sign).to(main) for change in changes]
    total = sum(change * own for change, own in zip(changes, agree, strict=True))
    divisor = sum(w * own for w, own in zip(weights, agree, strict=True))
    return main + total / torch.where(divisor == 0, 1.0, divisor)


def _largest(change: Tensor, density: float) -> Tensor:
    flat = change.flatten()
    kept = flat.abs().topk(int(density * flat.numel())).indices
    return torch.zeros_like(flat).index_copy(0, kept, flat[kept]).view_as(change)


def winner(found: Sequence[float], gates: Sequence[float]) -> int | None:
    """Which memory answers a row with these activations, None for W. The first is the running one:
    as released it hides every memory of a smaller activation, even below its own gate."""
    best, chosen = found[0], 0 if found[0] >= gates[0] else None
    for number, (activation, gate) in enumerate(zip(found, gates, strict=True)):
        if activation > best and activation > gate:
            best, chosen = activation, number
    return chosen


# -- the editor ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Memory:
    """A finished side memory in the layer's layout, its a, and after how many edits it was made."""

    weight: Tensor
    low: float
    edits: int


class WholeRowRouter(PrefillRouter):
    """Reads the layer's inputs at all tokens of the prompts, and which of them are real."""

    def _read(self, _module: nn.Module, inputs: tuple, output: Any) -> None:
        if not self._enabled:
            return
        hidden = first_tensor(inputs)
        if self.tracker.is_prefill:
            self._decide(with_mask(hidden, self.tracker.prompt_mask(hidden)))
        else:
            self._recall()


def with_mask(hidden: Tensor, counted: Tensor) -> Tensor:
    """Keys [B, T, d + 1]: inputs [B, T, d], and 1 at the tokens that count [B, T]."""
    return torch.cat([hidden, counted[..., None].to(hidden)], dim=2)


class Wise(Editor):
    """State: W' with its a, and the finished memories with theirs, in float32 or better.

    Keys are the layer's inputs at all tokens of a row.
    """

    name = "WISE"
    kinds = frozenset({"causal"})
    needs = ("training",)
    config: WiseConfig

    def __init__(
        self, backbone: Backbone, config: WiseConfig, *, training: TrainingFacts | None = None
    ) -> None:
        super().__init__(backbone, config)
        if config.shard_edits < 1 or config.merge_edits % config.shard_edits:
            raise EditorError(
                f"WISE: merge_edits ({config.merge_edits}) must be a multiple of shard_edits "
                f"({config.shard_edits})"
            )
        facts = training.train if training else ()
        self.unrelated = [probe for fact in facts for probe in fact.locality[:1]]
        self.path = config.site.path(backbone)
        self.layer = backbone.model.get_submodule(self.path)
        self.prefix = FrozenPrefix(backbone, first_block(backbone, [config.site]))
        self.phi = _activation(backbone)
        self.contexts: tuple[str, ...] | None = None
        self._placed: list[str] = []  # the routes of the rows of the running pass
        self._trained: Tensor | None = None  # what all rows get instead
        self._begin()
        self._router = WholeRowRouter(
            backbone,
            self.path,
            on_keys=self._decide,
            at_work=self._has_edits,
            position="last_prompt_token",
            per_step=False,
            of_input=True,
        )
        self.tracker = self._router.tracker
        # Behind the router's hook, which decides for the pass that is running.
        self._handle = self.layer.register_forward_hook(self._place)

    def _begin(self) -> None:
        self.side, self.low = self.main.clone(), UNSEEN
        self.memories: list[Memory] = []

    @property
    def main(self) -> Tensor:
        """W, in the layer's layout."""
        return precise(self.layer.weight.detach())

    # -- passes --------------------------------------------------------------------------------

    def _product(self, inputs: Tensor, weight: Tensor) -> Tensor:
        """The layer's output [..., d_out] with another weight."""
        if isinstance(self.layer, nn.Linear):
            bias = self.layer.bias
            return functional.linear(inputs, weight, None if bias is None else bias.to(inputs))
        return inputs @ weight + self.layer.bias.to(inputs)

    def _place(self, _module: nn.Module, inputs: tuple, output: Tensor) -> Tensor | None:
        if self._trained is not None:
            return self._product(inputs[0], self._trained.to(inputs[0]))
        edited = [route for route in dict.fromkeys(self._placed) if route != UNEDITED]
        if not edited:
            return None
        placed = output.clone()
        for route in edited:
            rows = [row for row, own in enumerate(self._placed) if own == route]
            placed[rows] = self._product(inputs[0][rows], self._weight(route).to(output))
        return placed

    def _decide(self, keys: Tensor) -> None:
        self._placed = self.routes_of(keys)

    @property
    def watch(self) -> tuple[str, ...]:
        """The layer itself: its inputs are the keys."""
        return (self.path,)

    def keys_from(self, state: PrefixState, batch: Encoded) -> Tensor:
        """The layer's inputs and which of them are real tokens [B, T, d_in + 1]."""
        return with_mask(state.watched_inputs[self.path], batch.attention_mask)

    @property
    def keys_see_target(self) -> bool:
        """Whether a row that carries its answer is routed on that too."""
        return self.config.sees_target

    @torch.no_grad()
    def routes_of(self, keys: Tensor) -> list[str]:
        """ "side 17" (W' after 17 edits), "memory 100" (finished after 100), or UNEDITED."""
        if not self._has_edits():
            return [UNEDITED] * len(keys)
        inputs, counted = precise(keys[..., :-1]), precise(keys[..., -1])
        weights = [self.side, *(memory.weight for memory in self.memories)]
        main = self._product(inputs, self.main)
        found = [
            activations(main, self._product(inputs, weight), counted, self.phi).tolist()
            for weight in weights
        ]
        lows = [self.low, *(memory.low for memory in self.memories)]
        if self.config.memory == "merge":
            lows = [min(lows)] * len(lows)
        gates = [self.config.act_ratio * low for low in lows]
        names = [f"side {self.n_edits}", *(f"memory {memory.edits}" for memory in self.memories)]
        chosen = [winner(row, gates) for row in zip(*found, strict=True)]
        return [UNEDITED if number is None else names[number] for number in chosen]

    def _weight(self, route: str) -> Tensor:
        kind, _, edits = route.partition(" ")
        if kind == "side":
            return self.side
        return next(memory.weight for memory in self.memories if memory.edits == int(edits))

    @contextlib.contextmanager
    def routed(self, batch: Encoded, routes: Sequence[str]) -> Iterator[None]:
        """See `Editor.routed`."""
        before, self._placed = self._placed, list(routes)
        try:
            with self._router.off():
                yield
        finally:
            self._placed = before

    @contextlib.contextmanager
    def _training(self, side: Tensor) -> Iterator[None]:
        """Passes inside the context put every row through W'."""
        self._trained = side
        try:
            with self._router.off():
                yield
        finally:
            self._trained = None

    # -- editing -------------------------------------------------------------------------------

    def _fit(self, stream: Stream) -> None:
        """The context texts; they are made at the first edit otherwise."""
        self.prepare()

    def prepare(self) -> None:
        """Sample the context texts from the unedited backbone, once."""
        if self.contexts is None:
            self.contexts = sample_contexts(self.backbone, self.config.contexts, self.config.seed)

    def tokens_before(self) -> int:
        """Tokens of the longest context."""
        self.prepare()
        head = head_length(self.backbone)
        lengths = (len(prompt_ids(self.backbone, context)) - head for context in self.contexts)
        return max(lengths, default=0)

    def _edit(self, batch: Sequence[Edit]) -> EditReport:
        if not self.unrelated:
            raise EditorError(
                "WISE keeps unrelated prompts apart while it edits; pass training= (facts with a "
                "locality prompt each, lib.data.training), or give the setting a `training` entry"
            )
        self.prepare()
        began, losses = time.perf_counter(), []
        for number, edit in enumerate(batch, start=self.n_edits):
            losses.append(self._train(edit, number))
            self._file(number + 1)
        first, last, steps = (sum(each) / len(each) for each in zip(*losses, strict=True))
        seconds = time.perf_counter() - began
        return EditReport(seconds, first, last, self.counts() | {"steps": steps})

    def _train(self, edit: Edit, number: int) -> tuple[float, float, int]:
        """Train W' on one edit; gives the loss at its first and last step, and how many there
        were."""
        config, main = self.config, self.main
        rows = self._rows([context + edit.prompt for context in ("", *self.contexts)], edit.target)
        probe = self.unrelated[number % len(self.unrelated)]
        unrelated = self._rows([probe.prompt], probe.target)
        state = self.prefix.record(rows, watch=self.watch, edited=self.watch)
        inside = self._measured(rows, state)
        outside = self._measured(unrelated, self.prefix.record(unrelated, watch=self.watch))
        answer = int((rows.labels[0] != IGNORED).sum())
        mask, side = self._mask(number // config.shard_edits), nn.Parameter(self.side.clone())
        history: list[float] = []
        for step in range(config.steps):
            with self._training(side), self.prefix.replay(state):
                logits, labels, _ = target_logits(self.backbone, rows, labels_only=True)
            losses = functional.cross_entropy(precise(logits), labels, reduction="none")
            found = inside(side)
            margins = margin_loss(found, outside(side), config.alpha, config.beta, config.gamma)
            loss = edit_term(losses, answer) + margins
            history.append(loss.item())
            learned = step > 1 and (
                abs(history[-2] - history[-3]) <= STEADY and history[-2] <= SMALL
            )
            if learned or step == config.steps - 1:
                self.low = min(self.low, found.mean().item())
            if learned:
                break
            (gradient,) = torch.autograd.grad(loss, side)
            with torch.no_grad():
                side.copy_(stepped(side, gradient, mask, main, config))
        self.side = side.detach()
        return history[0], history[-1], len(history)

    def _rows(self, prompts: Sequence[str], answer: str) -> Encoded:
        """Prompts with an answer, which is their label, without end mark."""
        backbone, length = self.backbone, self.config.max_length
        heads = [prompt_ids(backbone, prompt, length) for prompt in prompts]
        tail = answer_ids(backbone, answer, length)
        rows = [head + tail for head in heads]
        batch = batch_rows(backbone, rows, [len(head) for head in heads], "left")
        labels = pad([[IGNORED] * len(head) + tail for head in heads], IGNORED, "left")
        return replace(batch, labels=labels.to(backbone.device))

    def _measured(self, rows: Encoded, state: PrefixState) -> Callable[[Tensor], Tensor]:
        """Gives D of some rows [B] under any W'."""
        inputs, counted = precise(state.watched_inputs[self.path]), rows.attention_mask
        counted = torch.ones_like(counted) if self.config.pads_in_distance else counted
        main = self._product(inputs, self.main)
        return lambda side: activations(main, self._product(inputs, side), counted, self.phi)

    def _mask(self, shard: int) -> Tensor:
        """M of a shard, drawn on the host."""
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + shard)
        drawn = torch.rand(self.side.shape, generator=generator) < self.config.mask_ratio
        return drawn.to(self.side.device)

    def _file(self, edits: int) -> None:
        """Shard and merge where so many edits are the end of either."""
        config = self.config
        if edits % config.shard_edits:
            return
        self.memories.append(Memory(self.side, self.low, edits))
        self.side = self.main.clone()
        if config.memory == "retrieve":
            self.low = UNSEEN
        if edits % config.merge_edits:
            return
        count = config.merge_edits // config.shard_edits
        shards, self.memories = self.memories[-count:], self.memories[:-count]
        weights = [1.0] * count
        if config.memory == "merge" and self.memories:  # the one of the merges before
            shards, self.memories = [*self.memories, *shards], []
            weights = [0.6, *[0.4 / count] * count]
        merged = ties(self.main, [shard.weight for shard in shards], weights, config.density)
        self.memories.append(Memory(merged, min(shard.low for shard in shards), edits))

    # -- state ---------------------------------------------------------------------------------

    def _rollback(self) -> None:
        self._begin()

    def _remove(self) -> None:
        self._handle.remove()
        self._router.remove()

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """W' and the finished memories."""
        finished = {f"memory {memory.edits}": memory.weight for memory in self.memories}
        return {"memories": {"side": self.side, **finished}}

    def extra(self) -> dict[str, Any]:
        """The context texts, and a of every memory."""
        lows = [[memory.edits, memory.low] for memory in self.memories]
        return {"contexts": self.contexts, "low": self.low, "lows": lows}

    def restore(self, tensors: dict[str, dict[str, Tensor]], extra: dict[str, Any]) -> None:
        """See `Editor.restore`."""
        self.contexts = None if extra["contexts"] is None else tuple(extra["contexts"])
        held = {k: v.to(self.side.device).clone() for k, v in tensors["memories"].items()}
        self.side, self.low = held["side"], extra["low"]
        self.memories = [Memory(held[f"memory {n}"], low, n) for n, low in extra["lows"]]

    def counts(self) -> dict[str, float]:
        """Side memories, and their parameters outside the main one."""
        count = 1 + len(self.memories)
        return {"memories": count, "parameters": count * self.side.numel(), "stored_floats": 0}


def _activation(backbone: Backbone) -> Callable[[Tensor], Tensor]:
    """phi: what the backbone's MLPs apply between their matrices."""
    config = backbone.model.config
    return ACT2FN[getattr(config, "hidden_act", None) or config.activation_function]
