"""The peak memory of a run on a card, counted from its configuration on a model without weights.

    weights     of the backbone and of what the editor loads beside it, in the run's precision
    trained     what an optimiser holds: copy, gradient and two moments of every trained number
    activations what one forward pass keeps for its backward pass, counted by PyTorch itself
    solves      the matrices of a least-squares step that visit the card one layer at a time
    scoring     logits and states of one batch of the evaluation
    kept        states that passes leave behind for each other, up to their share of the card

Rows and tokens are those of long prompts: the plan has not read the data yet. Attention is counted
with its matrix of scores, which fused kernels do not keep, so long rows come out too high.
"""

import functools
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lib.backbones.backbone import family_of
from lib.backbones.sources.shapes import without_weights
from lib.editors import backbones_of, configured
from lib.editors.base import EditorConfig
from lib.runs.plan import Run
from lib.runs.resources import MEMORY_SHARE

TOKENS = {"zsre": 32, "counterfact": 24, "fever": 48, "scotus": 512, "hallucination": 300}
"""Tokens of a long row, prompt and answer, by dataset; `max_length` of an editor is a bound."""
OTHER = 64  # of a dataset that is not among them
ANSWER = 8  # tokens of a row's answer: positions whose logits are kept
VALUE_BUDGET = (
    2**32
)  # bytes of a value search on a card (`values.BUDGET`), but one request at least
CONTEXT = 0.75 * 2**30  # bytes that CUDA and its libraries take for themselves
FULL = 4  # bytes of a number in float32, which training, statistics and logits have
HELD = 4  # times a trained number is held: original, gradient, two moments of Adam
SOLVED = 3  # float64 matrices of a solve at once: C, its factor, one of the two in float32
GIB = 2**30


@dataclass(frozen=True)
class Need:
    """Bytes at the peak, by cause."""

    weights: float
    trained: float
    activations: float
    solves: float
    scoring: float
    kept: float

    @property
    def gigabytes(self) -> float:
        """GiB of the card: editing and scoring do not meet."""
        still = self.weights + self.trained + self.kept + CONTEXT
        return (still + max(self.activations + self.solves, self.scoring)) / GIB

    def parts(self) -> dict[str, float]:
        """GiB by cause."""
        return {name: round(size / GIB, 2) for name, size in asdict(self).items()}


def need_of(run: Run, room: float) -> Need | None:
    """What a run needs at its peak on a card of `room` GiB; None for an unknown shape."""
    spec = run.spec
    dtype = getattr(torch, spec.get("dtype", "float32"))
    model = _model(spec["backbone"], dtype)
    if model is None:
        return None
    config = configured(spec["editor"], spec["config"])
    beside = [_model(name, dtype) for name in backbones_of(spec["editor"], spec["config"])]
    tokens = min(TOKENS.get(spec["dataset"]["name"], OTHER), config.max_length or 10**9)
    stream = spec["stream"]
    rows, at = _rows(config, stream["batch_size"]), _first(model, config)
    activations = _activations(spec["backbone"], dtype, rows, tokens, at)
    solves = 0.0
    if hasattr(config, "contexts"):  # as many requests at once as the budget holds
        wanted = activations * (1 if hasattr(config, "moment_adjustment") else stream["batch_size"])
        activations = min(wanted, max(activations, VALUE_BUDGET))
        if getattr(config, "moment_adjustment", True):
            solves = SOLVED * 2 * FULL * _inner(model) ** 2
    hidden = model.config.hidden_size
    scored = spec["protocol"].get("evaluation_batch", 32)
    words = model.config.vocab_size if model.can_generate() else 0
    element = dtype.itemsize
    score = scored * tokens * _inner(model) * element * 4 + scored * ANSWER * words * FULL * 2
    kept = 2 * stream["n_edits"] * tokens * hidden * element
    numbers, network = _trained(model, config)
    return Need(
        weights=_bytes([model, *filter(None, beside)]),
        trained=numbers * HELD * FULL + network,
        activations=activations,
        solves=solves,
        scoring=score,
        kept=min(kept, room * GIB * MEMORY_SHARE),
    )


def counted(runs: Iterable[Run], room: float) -> list[Run]:
    """Runs with what they need on a card of `room` GiB; those on a processor, whose need was
    measured, and those of unknown shape as they are."""
    found = []
    for run in runs:
        need = need_of(run, room) if run.spec["device"] != "cpu" else None
        found.append(run if need is None else replace(run, gigabytes=round(need.gigabytes, 1)))
    return found


@functools.cache
def _model(name: str, dtype: torch.dtype) -> PreTrainedModel | None:
    return without_weights(name, dtype)


def _bytes(models: Iterable[nn.Module]) -> int:
    return sum(parameter.nbytes for model in models for parameter in model.parameters())


def _rows(config: EditorConfig, batch: int) -> int:
    """Rows of one training step; of one request of a value search: bare, behind each context, and
    "{subject} is a"."""
    if hasattr(config, "contexts"):
        return 2 + sum(count for _, count in config.contexts)
    if getattr(config, "one_by_one", False):
        return 1
    return min(batch, getattr(config, "batch_rows", 0) or getattr(config, "chunk", 0) or batch)


def _sites(config: EditorConfig) -> list[Any]:
    return [*getattr(config, "sites", ()), *filter(None, [getattr(config, "site", None)])]


def _first(model: PreTrainedModel, config: EditorConfig) -> tuple[str, int]:
    """Stack and block at which gradients begin; what trains everywhere begins at the bottom."""
    family = family_of(model)
    stacks = list(family.stacks)
    if found := _sites(config):
        places = [(stacks.index(family.stack(site.stack)), site.block) for site in found]
        stack, block = min(places)
        return stacks[stack], block
    if blocks := getattr(config, "blocks", None):
        return stacks[-1], max(blocks)  # a value search begins at the last one
    return stacks[-1], 0


@functools.cache
def _activations(
    name: str, dtype: torch.dtype, rows: int, tokens: int, at: tuple[str, int]
) -> float:
    """Bytes that a pass over some rows keeps for its backward pass, from the given block on."""
    model, (stack, block) = _model(name, dtype), at
    own = {id(parameter) for parameter in model.parameters()}
    held: dict[int, Tensor] = {}  # alive, so that no two share a number

    def keep(tensor: Tensor) -> Tensor:
        base = tensor if tensor._base is None else tensor._base
        if id(base) not in own:
            held[id(base)] = base
        return tensor

    first = model.get_submodule(f"{family_of(model).stacks[stack]}.{block}")

    def begin(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0].detach().requires_grad_(), *inputs[1:])

    handle = first.register_forward_pre_hook(begin)
    given = {
        "input_ids": torch.zeros(rows, tokens, dtype=torch.long, device="meta"),
        # In its final shape: a mask of two dimensions would be looked into.
        "attention_mask": torch.zeros(rows, 1, 1, tokens, dtype=dtype, device="meta"),
    }
    if family_of(model).kind == "seq2seq":
        given["decoder_input_ids"] = given["input_ids"][:, :ANSWER]
        given["decoder_attention_mask"] = given["attention_mask"][..., :ANSWER]
    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            inner = model.base_model if family_of(model).kind == "causal" else model
            inner(**given, **({"use_cache": False} if model.can_generate() else {}))
    finally:
        handle.remove()
    logits = 3 * rows * ANSWER * model.config.vocab_size * FULL if model.can_generate() else 0
    return float(sum(tensor.nbytes for tensor in held.values()) + logits)


def _inner(model: PreTrainedModel) -> int:
    """Width of the MLP."""
    config = model.config
    for name in ("intermediate_size", "d_ff", "n_inner"):
        if found := getattr(config, name, None):
            return found
    return 4 * config.hidden_size


def _trained(model: PreTrainedModel, config: EditorConfig) -> tuple[int, float]:
    """How many numbers an optimiser trains, and the bytes of a hyper-network and its step."""
    one = _inner(model) * model.config.hidden_size
    sites = _sites(config)
    rank = getattr(config, "rank", None)
    if hasattr(config, "meta_lr"):
        blocks = config.n_blocks
        wide = _inner(model) + model.config.hidden_size
        network = blocks * (2 * wide * rank + wide) * len({site.part for site in sites})
        shifts = 2 * len(sites) * one  # the shifts in force and Gamma
        solve = SOLVED * _inner(model) ** 2
        return network, FULL * (shifts + solve)
    if rank or hasattr(config, "rank_per_block"):
        each = rank or config.rank_per_block * config.n_blocks
        return each * (_inner(model) + model.config.hidden_size) * max(len(sites), 1), 0.0
    if hasattr(config, "epochs") or hasattr(config, "norm_constraint"):
        return len(sites) * one, 0.0
    if hasattr(config, "halve_every") or not hasattr(config, "radius"):
        return (len(sites) * one if sites else 0), 0.0
    return 0, 0.0
