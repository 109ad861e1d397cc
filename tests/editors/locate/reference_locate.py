"""The locate-and-edit family, slow and plain, in float64: the oracle of the parity tests.

Written from the study's notes on COMEBA-HK alone (section numbers are theirs); it shares no code
with `lib.editors`. One request at a time, full passes of the Hugging Face model with ordinary
forward hooks, `torch.optim.Adam` on a float64 delta, `torch.linalg.solve` on the full matrix.

    reference = reference_updates.Reference(backbone, Settings(layers=(1, 2)), contexts, moments)
    reference.edit(requests)        # COMEBA-HK; edit_in_place: without hooks, MEMIT; edit_rome
    reference.logits("a prompt")    # routed as 2.10 says

This file: strings, passes, hooks, and the quantities read from them.
"""

import contextlib
import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lib.backbones.backbone import Backbone

IGNORED = -100
TEMPORARY, VALIDATED, RECORDING = "temporary", "validated", "recording"


class Request(NamedTuple):
    """One edit: `prompt` holds `subject` exactly once; `target` without its leading space."""

    prompt: str
    subject: str
    target: str


class Row(NamedTuple):
    """Token ids of one string and the index of the subject's last token in it."""

    ids: list[int]
    look: int


@dataclass(frozen=True)
class Settings:
    """Letters of the notes, sections 2 and 4; `steps` is `v_num_grad_steps` (updates - 1)."""

    layers: tuple[int, ...] = (1, 2)
    lam: float = 15000.0
    alpha: float = 2.2
    steps: int = 20
    lr: float = 0.5
    weight_decay: float = 0.5
    clamp: float = 0.75
    kl: float = 0.0625
    stop: float = 0.05
    pad_in_stats: bool = True
    chunk: int = 128


@dataclass
class Search:
    """One value search (2.5): the result, its start, and what happened at every evaluation."""

    value: Tensor
    initial: Tensor
    delta: Tensor
    updates: int
    labels: Tensor
    losses: list[float] = field(default_factory=list)
    kls: list[float] = field(default_factory=list)


def z_scores(m: Tensor, counted: Tensor) -> Tensor:
    """Scores [B, T] of distances m [B, T] over the counted positions of each row (2.3)."""
    z = torch.full_like(m, math.nan)
    for b in range(len(m)):
        seen = m[b][counted[b]]
        if len(seen) > 1:
            sd = torch.sqrt(((seen - seen.mean()) ** 2).sum() / (len(seen) - 1))
            z[b][counted[b]] = (seen - seen.mean()) / sd
    return z


class Quantities:
    """A float64 copy of the backbone with hook weights W [d, f] and alpha per edited layer.

    `contexts` is [["{}"], five].
    """

    def __init__(
        self, backbone: Backbone, settings: Settings, contexts: Sequence[Sequence[str]]
    ) -> None:
        self.bb = replace(backbone, model=copy.deepcopy(backbone.model).double())
        self.s = settings
        self.groups = [list(group) for group in contexts]
        self.contexts = [context for group in self.groups for context in group]
        self.n_prefix = len(self.encode(""))
        self.W = {layer: self.weight(layer).clone() for layer in settings.layers}
        self.alpha = dict.fromkeys(settings.layers, settings.alpha)
        self.searches: list[Search] = []

    # -- strings -------------------------------------------------------------------------------

    def encode(self, text: str) -> list[int]:
        """Ids of a text as the model reads it: the backbone's prefix comes first."""
        return self.bb.tokenizer(self.bb.prefix + text)["input_ids"]

    def target(self, request: Request) -> list[int]:
        """Ids of " target" without special tokens; a leading bos or unk id is dropped (2.5)."""
        text = request.target if request.target[0] == " " else " " + request.target
        tokenizer = self.bb.tokenizer
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        special = {tokenizer.bos_token_id, tokenizer.unk_token_id} - {None}
        return ids[1:] if ids[0] in special else ids

    def row(self, context: str, request: Request, tail: Sequence[int] = ()) -> Row:
        """The prompt in a context, with target ids appended (2.5-2.7)."""
        before, after = request.prompt.split(request.subject)  # exactly one occurrence
        start, end = context.split("{}")
        head = start + before + request.subject
        return Row(self.encode(head + after + end) + list(tail), len(self.encode(head)) - 1)

    def essence(self, request: Request) -> Row:
        """The KL row "{} is a"."""
        look = len(self.encode(request.subject)) - 1
        return Row(self.encode(f"{request.subject} is a"), look)

    # -- passes --------------------------------------------------------------------------------

    def run(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Logits [B, T, V] of right-padded rows, with a mask and without position ids."""
        width = max(len(row) for row in rows)
        pad = self.bb.pad_id
        ids = torch.tensor([list(row) + [pad] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        self.counted = torch.ones_like(mask).bool() if self.s.pad_in_stats else mask.bool()
        self.counted = self.counted & (torch.arange(width) >= self.n_prefix)
        return self.bb.model(input_ids=ids, attention_mask=mask).logits

    def weight(self, layer: int) -> Tensor:
        """The model's own proj weight as [d, f], whatever the layout (2.1). A view."""
        module = self.bb.module("mlp_out", layer)
        weight = module.weight.data
        return weight if isinstance(module, torch.nn.Linear) else weight.T

    @contextlib.contextmanager
    def watch(self, layer: int, part: str = "mlp_out") -> Iterator[dict[str, Tensor]]:
        """Input and output of a part in the last pass inside the context."""
        seen: dict[str, Tensor] = {}

        def note(_module: Any, inputs: tuple, output: Any) -> None:
            seen["input"] = inputs[0].detach()
            seen["output"] = (output[0] if isinstance(output, tuple) else output).detach()

        handle = self.bb.module(part, layer).register_forward_hook(note)
        try:
            yield seen
        finally:
            handle.remove()

    @contextlib.contextmanager
    def hooks(self, modes: dict[int, str]) -> Iterator[dict[int, Tensor]]:
        """The three behaviours of 2.3, one mode per layer; gives the latest z [B, T] per layer."""
        seen: dict[int, Tensor] = {}
        handles = []
        for layer, mode in modes.items():

            def hook(module: Any, inputs: tuple, P: Tensor, layer=layer, mode=mode) -> Tensor:
                bias = 0.0 if module.bias is None else module.bias
                O = inputs[0] @ self.W[layer].T + bias  # noqa: E741
                z = seen[layer] = z_scores((O - P).norm(dim=-1).detach(), self.counted)
                if mode == RECORDING:
                    return P
                on = z >= self.alpha[layer]
                if mode == TEMPORARY:  # every token, except the prefix of this study
                    on = (torch.arange(P.shape[1]) >= self.n_prefix).expand(P.shape[:2])
                return torch.where(on.unsqueeze(-1), O, P)

            handles.append(self.bb.module("mlp_out", layer).register_forward_hook(hook))
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()

    # -- quantities ----------------------------------------------------------------------------

    def search(self, request: Request, layer: int, part: str = "block") -> Search:
        """The value of one request (2.5) at the output of `part` ("mlp_out" in ROME)."""
        s, target = self.s, self.target(request)
        rows = [self.row(c, request, target[:-1]) for c in self.contexts]
        rows.append(self.essence(request))
        labels = torch.full((len(rows), max(len(row.ids) for row in rows)), IGNORED)
        for b, row in enumerate(rows[:-1]):
            e = len(row.ids)
            labels[b, e - len(target) : e] = torch.tensor(target)
        delta: Tensor | None = None
        initial: Tensor | None = None

        def add(_module: Any, _inputs: tuple, output: Any) -> Any:
            nonlocal delta, initial
            h = (output[0] if isinstance(output, tuple) else output).clone()
            if delta is None:
                initial = h[0, rows[0].look].detach().clone()
                delta = torch.zeros_like(initial, requires_grad=True)
            for b, row in enumerate(rows):
                h[b, row.look] = h[b, row.look] + delta
            return (h, *output[1:]) if isinstance(output, tuple) else h

        result = Search(torch.empty(0), torch.empty(0), torch.empty(0), 0, labels)
        handle = self.bb.module(part, layer).register_forward_hook(add)
        optimiser = start = None
        try:
            for it in range(s.steps):
                log_probs = torch.log_softmax(self.run([row.ids for row in rows]), dim=-1)
                optimiser = optimiser or torch.optim.Adam([delta], lr=s.lr)
                here = log_probs[-1, rows[-1].look]
                start = here.detach().clone() if start is None else start
                wanted = labels[:-1] != IGNORED
                at_labels = log_probs[:-1].gather(2, labels[:-1, :, None].clamp(min=0))[..., 0]
                each = -(at_labels * wanted).sum(dim=1) / len(target)
                nll = each.mean()
                kl = (here.exp() * (here - start)).sum()
                decay = s.weight_decay * delta.norm() / initial.norm() ** 2
                loss = nll + s.kl * kl + decay
                result.losses.append(loss.item())
                result.kls.append(kl.item())
                if loss < s.stop or it == s.steps - 1:
                    break
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                result.updates += 1
                with torch.no_grad():
                    bound = s.clamp * initial.norm()
                    if delta.norm() > bound:
                        delta *= bound / delta.norm()
        finally:
            handle.remove()
        result.initial, result.delta = initial, delta.detach()
        result.value = initial + delta.detach()
        return result

    def at_subject(self, rows: Sequence[Row], layer: int, part: str, what: str) -> Tensor:
        """Vectors [N, width] at the subjects' last tokens, in chunks of 128 strings (2.6)."""
        found = []
        for i in range(0, len(rows), self.s.chunk):
            chunk = rows[i : i + self.s.chunk]
            with torch.no_grad(), self.watch(layer, part) as seen:
                self.run([row.ids for row in chunk])
            found += [seen[what][b, row.look] for b, row in enumerate(chunk)]
        return torch.stack(found)

    def keys(self, requests: Sequence[Request], layer: int) -> Tensor:
        """K [f, B]: means within each context group, then the mean of the group means (2.6)."""
        rows = [self.row(c, r) for r in requests for c in self.contexts]
        found = self.at_subject(rows, layer, "mlp_out", "input")
        per_request = found.view(len(requests), len(self.contexts), -1)
        parts = per_request.split([len(group) for group in self.groups], dim=1)
        return torch.stack([part.mean(dim=1) for part in parts]).mean(dim=0).T

    def block_outputs(self, requests: Sequence[Request]) -> Tensor:
        """Current outputs [d, B] of block z for the bare prompts (2.6)."""
        rows = [self.row("{}", r) for r in requests]
        return self.at_subject(rows, self.s.layers[-1], "block", "output").T

    # -- inference -----------------------------------------------------------------------------

    def logits(self, text: str, tail: Sequence[int] = ()) -> Tensor:
        """Logits [T, V] of one string under VALIDATED hooks (2.10)."""
        with self.hooks(dict.fromkeys(self.s.layers, VALIDATED)), torch.no_grad():
            return self.run([self.encode(text) + list(tail)])[0]

    def scores(self, text: str, layer: int | None = None) -> Tensor:
        """z [T] of one string at a layer (default: the last edited one), as at inference."""
        with self.hooks(dict.fromkeys(self.s.layers, VALIDATED)) as z, torch.no_grad():
            self.run([self.encode(text)])
        return z[self.s.layers[-1] if layer is None else layer][0]
