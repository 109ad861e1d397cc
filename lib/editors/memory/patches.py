"""Patches: new key/value neurons beside an MLP, their losses and their training (T-Patcher).

Symbols (elder 7): d the residual width; a patch is a key k [d], a bias b and a value v [d]; at a
hidden state h it has the pre-activation a = h k + b and adds relu(a) v to the MLP's output. N label
positions of one edit, p patches trained together, M [m, d] stored states of unrelated text.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from lib.errors import EditorError

# The official values for sequence to sequence.
MAX_PATCHES = 5
WEIGHT_DECAY = 0.01
CHECK_EVERY = 25  # steps
CLIP = 5.0  # norm of the gradient
SCALE = 10.0  # where a value's factor starts
ACTIVATION_ROWS = 5
MEMORY_WEIGHT = 10.0
MARGIN = 3.0
# Our choice.
PATIENCE = 1  # checks without progress before lr is halved
SMOOTHING = 0.1  # of the labels


@dataclass(frozen=True)
class Patches:
    """Keys [n, d], biases [n] and values [n, d] of n patches."""

    keys: Tensor
    biases: Tensor
    values: Tensor

    @classmethod
    def none(cls, width: int, like: Tensor) -> "Patches":
        """No patch yet, in the precision and on the device of `like`."""
        return cls(like.new_empty(0, width), like.new_empty(0), like.new_empty(0, width))

    def __len__(self) -> int:
        return len(self.biases)

    def __call__(self, hidden: Tensor) -> Tensor:
        """What all patches together add at hidden states [..., d]: [..., d]."""
        return functional.relu(self.activations(hidden)) @ self.values

    def activations(self, hidden: Tensor) -> Tensor:
        """Pre-activations a [..., n] at hidden states [..., d]."""
        return hidden @ self.keys.T + self.biases

    def joined(self, other: "Patches") -> "Patches":
        """These and those."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Patches(*(torch.cat(pair) for pair in pairs))


@dataclass(frozen=True)
class TrainedPatches:
    """New patches, the total loss at the first and last step, the number of updates, and whether
    every token was right and no stored state fired a patch in the end."""

    patches: Patches
    first: float
    last: float
    steps: int
    solved: bool


def activation_loss(own: Tensor, rows: int) -> Tensor:
    """Mean of exp(-a) over the `rows` patches that are least active at their own token; own [p]."""
    return own.topk(min(rows, len(own)), largest=False).values.neg().exp().mean()


def memory_loss(stored: Tensor, own: Tensor, margin: float) -> Tensor:
    """Mean of exp(a + margin) and of exp(a - a_own + margin), summed: a stored state should stay
    `margin` below zero, and `margin` below the patch's own token. stored [r, p], own [p]."""
    return (stored + margin).exp().mean() + (stored - own + margin).exp().mean()


class _Trainable:
    """p patches as they are trained: v = scale * raw, raw from zero, so that the first pass is the
    model's own; keys h / ||h||^2, so that each starts with the activation 1 at its own token."""

    def __init__(self, own: Tensor) -> None:
        self.keys = nn.Parameter(own / own.square().sum(dim=1, keepdim=True))
        self.biases = nn.Parameter(own.new_zeros(len(own)))
        self.raw = nn.Parameter(torch.zeros_like(own))
        self.scale = nn.Parameter(own.new_full((len(own), 1), SCALE))

    def parameters(self) -> list[nn.Parameter]:
        return [self.keys, self.biases, self.raw, self.scale]

    def patches(self) -> Patches:
        return Patches(self.keys, self.biases, self.scale * self.raw)


def strongest(patches: Patches, memory: Tensor, rows: int) -> Tensor:
    """The `rows` highest pre-activations of each patch over the stored states [r, p].

    One product over all states finds them; gradients pass through the chosen rows alone, which is
    the same and costs a fraction.
    """
    with torch.no_grad():
        chosen = patches.activations(memory).topk(min(rows, len(memory)), dim=0).indices
    return torch.einsum("rpd,pd->rp", memory[chosen], patches.keys) + patches.biases


@torch.enable_grad()
def train_patches(
    hidden: Tensor,
    labels: Tensor,
    right: Tensor,
    memory: Tensor,
    logits_of: Callable[[Tensor], Tensor],
    *,
    lr: float,
    steps: int,
    memory_rows: int,
) -> TrainedPatches:
    """One patch for each of the first MAX_PATCHES answer tokens that are not `right` [N] yet.

    `hidden` [N, d]: the MLP's input at the label positions; `labels` [N]; `memory` [m, d].
    `logits_of(added [N, d])` gives logits [N, V] with that added to the MLP's output. Every
    CHECK_EVERY steps it is asked whether all tokens that were right or have a patch are the
    argmax, every patch is active at its own token and none at a stored state; then training ends.
    Raises EditorError if the loss leaves the range of numbers.
    """
    wrong = (~right).nonzero()[:MAX_PATCHES, 0]
    reachable = right.index_fill(0, wrong, True)
    trainable = _Trainable(hidden[wrong])
    parameters = trainable.parameters()
    adam = torch.optim.Adam(parameters, lr=lr, weight_decay=WEIGHT_DECAY)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(adam, factor=0.5, patience=PATIENCE)
    for step in range(steps + 1):
        patches = trainable.patches()
        own = patches.activations(hidden[wrong]).diagonal()
        logits = logits_of(patches(hidden))
        stored = strongest(patches, memory, memory_rows)
        loss = (
            functional.cross_entropy(logits, labels, label_smoothing=SMOOTHING)
            + activation_loss(own, ACTIVATION_ROWS)
            + MEMORY_WEIGHT * memory_loss(stored, own, MARGIN)
        )
        if step == 0:
            first = loss.detach()
        if step == steps or (step and step % CHECK_EVERY == 0):
            answered = (logits.argmax(dim=-1) == labels)[reachable].all()
            solved = bool(answered & (own > 0).all() & (stored <= 0).all())
            if solved or step == steps:
                break
            plateau.step(loss.item())
        adam.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, CLIP)
        adam.step()
    if not torch.isfinite(loss):
        raise EditorError(
            f"T-Patcher: the loss of a patch is {loss.item()} after {step} steps; lower lr"
        )
    done = Patches(*(tensor.detach().clone() for tensor in vars(patches).values()))
    return TrainedPatches(done, first.item(), loss.item(), step, solved)
