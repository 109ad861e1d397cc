"""The value search of ROME and MEMIT, all requests of a batch together (ref 2.5).

A vector delta is added to the output of one block at the subject's last token until the model
answers with the target. Deltas of different requests never meet, so optimising them side by side
equals the official loop over requests; a request that has finished leaves the batch. What lies at
or below the block, and every token before the subject's last one, is constant: computed once.

ROME adds its delta to the MLP's output instead: the block adds that output to its stream, so this
is the same addition; only the vector that bounds and decays delta differs (`initial`).
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from transformers import DynamicCache

from lib.backbones.backbone import Backbone
from lib.backbones.encoding import answer_ids
from lib.backbones.passes.prefix import FrozenPrefix, PrefixState
from lib.editors.locate.subjects import Request, Rows, contextual, encode_rows
from lib.storage import fingerprints
from lib.storage.cache import Cache


@dataclass(frozen=True)
class Search:
    """Hyper-parameters: at most `steps` - 1 updates of Adam at `lr`; ||delta|| is decayed by
    `weight_decay` / ||initial||^2 and clamped to `clamp` * ||initial||; `kl_factor` weighs the KL
    divergence at the subject of "{subject} is a"; a loss under `stop_loss` ends the search."""

    steps: int = 20
    lr: float = 0.5
    weight_decay: float = 0.5
    clamp: float = 0.75
    kl_factor: float = 0.0625
    stop_loss: float = 0.05


@dataclass(frozen=True)
class Found:
    """Values [B, d] = initial + delta (float32), and per request the loss at its first and last
    step, the number of updates, and the seconds of the whole search."""

    values: Tensor
    first: list[float]
    last: list[float]
    updates: list[int]
    seconds: float


@dataclass(frozen=True)
class ValueRows:
    """For each request its prompt behind every context, target included but for its last token,
    then "{subject} is a" (`kl` [R] marks it). `labels` [N]: target ids; `label_row`,
    `label_column` [N]: the row and column whose logits should give them."""

    rows: Rows
    kl: Tensor
    labels: Tensor
    label_row: Tensor
    label_column: Tensor


def value_rows(
    backbone: Backbone, requests: Sequence[Request], contexts: Sequence[str]
) -> ValueRows:
    """Tokenise everything that the search of these requests reads (`contexts` include "")."""
    strings, owner, follow, kl = [], [], [], []
    labels, label_row, label_column = [], [], []
    for number, request in enumerate(requests):
        answer = answer_ids(backbone, request.target)
        for parts in contextual(request, contexts):
            label_row += [len(strings)] * len(answer)
            labels += answer
            label_column += range(-len(answer), 0)
            strings.append(parts)
            follow.append(answer[:-1])
            kl.append(False)
            owner.append(number)
        strings.append(("", request.subject, " is a"))
        follow.append([])
        kl.append(True)
        owner.append(number)
    rows = encode_rows(backbone, strings, owner, follow)
    device = rows.batch.input_ids.device
    row = torch.tensor(label_row, device=device)
    column = rows.lengths[row] + torch.tensor(label_column, device=device)
    return ValueRows(
        rows, torch.tensor(kl, device=device), torch.tensor(labels, device=device), row, column
    )


@torch.enable_grad()
def search_values(
    backbone: Backbone, block: int, wanted: ValueRows, state: PrefixState, initial: Tensor,
    search: Search,
) -> Found:  # fmt: skip
    """Optimise one delta per request.

    `state` is what `FrozenPrefix(backbone, block + 1).record` gave for `wanted.rows.batch` under
    the weights in force; `initial` [B, d] the unedited output at each request's subject (float32).
    """
    began = time.perf_counter()
    count = len(initial)
    deltas = [nn.Parameter(torch.zeros_like(row)) for row in initial]
    adam = torch.optim.Adam(deltas, lr=search.lr)
    scale = initial.norm(dim=1)
    tail = Tail(backbone, block, wanted, state)
    first, last, updates = [0.0] * count, [0.0] * count, [0] * count
    before: dict[int, Tensor] = {}
    active = list(range(count))
    for step in range(search.steps):
        delta = torch.stack([deltas[request] for request in active])
        nll, log_p = tail.losses(delta, active)
        if step == 0:
            before = dict(zip(active, log_p.detach(), strict=True))
        start = torch.stack([before[request] for request in active])
        kl = (log_p.exp() * (log_p - start)).sum(dim=1)
        decay = delta.norm(dim=1) / scale[active] ** 2
        loss = nll + search.kl_factor * kl + search.weight_decay * decay
        numbers = loss.tolist()
        for request, number in zip(active, numbers, strict=True):
            last[request] = number
            if step == 0:
                first[request] = number
        going = [place for place, number in enumerate(numbers) if not number < search.stop_loss]
        if step == search.steps - 1 or not going:
            break
        loss[going].sum().backward()
        # A finished request has a zero gradient, and Adam's momentum would still move it.
        kept = [active[place] for place in going]
        for request in set(active) - set(kept):
            deltas[request].grad = None
        adam.step()
        adam.zero_grad(set_to_none=True)
        with torch.no_grad():
            for request in kept:
                updates[request] += 1
                length, bound = deltas[request].norm(), search.clamp * scale[request]
                if length > bound:
                    deltas[request].mul_(bound / length)
        active = kept
    values = initial + torch.stack([delta.detach() for delta in deltas])
    return Found(values, first, last, updates, time.perf_counter() - began)


class Tail:
    """Rows from the subject's last token on, above one block, with everything before cached."""

    def __init__(
        self, backbone: Backbone, block: int, wanted: ValueRows, state: PrefixState
    ) -> None:
        self.backbone, self.wanted = backbone, wanted
        self.above = FrozenPrefix(backbone, block + 1)
        rows, ids = wanted.rows, wanted.rows.batch.input_ids
        heads, lengths = rows.subject, rows.lengths - rows.subject
        self.heads, self.width = int(heads.max()), int(lengths.max())
        device = ids.device
        place = torch.arange(self.heads, device=device) - (self.heads - heads[:, None])
        self.head_mask = (place >= 0).long()
        offset = torch.arange(self.width, device=device)
        self.tail_mask = (offset < lengths[:, None]).long()
        head_index = place.clamp(min=0)
        tail_index = (heads[:, None] + offset).clamp(max=ids.shape[1] - 1)
        self.ids, self.positions = ids.gather(1, tail_index), tail_index
        self.stream = _columns(state.output, tail_index)
        self.cache: list[tuple[Tensor, Tensor]] = []
        if self.heads:
            self._fill(ids.gather(1, head_index), head_index, _columns(state.output, head_index))

    @torch.no_grad()
    def _fill(self, ids: Tensor, positions: Tensor, stream: Any) -> None:
        """Keys and values of the tokens before the subject's last one, above the block."""
        cache = DynamicCache()
        with self.above.replay(PrefixState(stream, {}, {}, len(ids))):
            self.backbone.model.base_model(
                input_ids=ids,
                attention_mask=self.head_mask,
                position_ids=positions.clamp(min=0),
                past_key_values=cache,
                use_cache=True,
            )
        above = cache.layers[self.above.first :]
        self.cache = [(layer.keys.detach(), layer.values.detach()) for layer in above]

    def _prefilled(self, rows: Tensor) -> DynamicCache | None:
        if not self.heads:
            return None
        cache = DynamicCache()
        # Blocks below are replayed, not run: their entries only tell the mask how much is cached.
        nothing = self.head_mask.new_zeros((len(rows), 1, self.heads, 1), dtype=torch.float32)
        for layer in range(self.above.first):
            cache.update(nothing, nothing, layer)
        for number, (keys, values) in enumerate(self.cache):
            cache.update(keys[rows], values[rows], self.above.first + number)
        return cache

    def losses(self, delta: Tensor, active: list[int]) -> tuple[Tensor, Tensor]:
        """With delta [A, d] added for the `active` requests: mean NLL per target token, averaged
        over contexts [A], and log-probabilities at the subject of the KL row [A, V]."""
        wanted, model = self.wanted, self.backbone.model
        chosen = torch.tensor(active, device=delta.device)
        rows = torch.isin(wanted.rows.owner, chosen).nonzero()[:, 0]
        slot = torch.searchsorted(chosen, wanted.rows.owner[rows])
        added = delta[slot]

        def with_delta(stream: Tensor) -> Tensor:
            stream = stream[rows]
            return torch.cat([stream[:, :1] + added[:, None].to(stream), stream[:, 1:]], dim=1)

        stream = _first_tensor(self.stream, with_delta)
        mask = torch.cat([self.head_mask[rows], self.tail_mask[rows]], dim=1)
        cache = self._prefilled(rows)
        with self.above.replay(PrefixState(stream, {}, {}, len(rows))):
            hidden = model.base_model(
                input_ids=self.ids[rows],
                attention_mask=mask,
                position_ids=self.positions[rows],
                past_key_values=cache,
                use_cache=cache is not None,
            ).last_hidden_state
        # Places of the labels and of the KL rows inside this pass.
        inside = torch.full((len(wanted.rows),), -1, device=delta.device)
        inside[rows] = torch.arange(len(rows), device=delta.device)
        kept = inside[wanted.label_row] >= 0
        row, source = inside[wanted.label_row[kept]], wanted.label_row[kept]
        column = wanted.label_column[kept] - wanted.rows.subject[source]
        kl_rows = wanted.kl[rows].nonzero()[:, 0]
        head = model.get_output_embeddings()
        log_p = head(torch.cat([hidden[row, column], hidden[kl_rows, 0]])).float()
        log_p = log_p.log_softmax(dim=-1)
        picked = log_p[: len(row)].gather(1, wanted.labels[kept][:, None])[:, 0]
        per_request = torch.bincount(slot[row], minlength=len(active))
        # Every row of a request has the same labels: the mean over rows of means over tokens.
        nll = -torch.zeros_like(delta[:, 0]).index_add(0, slot[row], picked) / per_request
        return nll, log_p[len(row) :]


def _columns(output: Any, index: Tensor) -> Any:
    """The given columns [R, W] of the hidden states [R, T, d] in a block's output."""
    return _first_tensor(
        output, lambda hidden: hidden.gather(1, index[..., None].expand(-1, -1, hidden.shape[2]))
    )


def _first_tensor(output: Any, change: Any) -> Any:
    """`output` with its hidden states changed: blocks return them bare or first in a tuple."""
    if isinstance(output, (tuple, list)):
        return type(output)((change(output[0]), *output[1:]))
    return change(output)


@dataclass(frozen=True)
class ValueCache:
    """Values that are kept. `identity` says everything but the request that decides a value."""

    cache: Cache
    identity: list[object]

    def _identity(self, request: Request) -> list[object]:
        code = fingerprints.code(
            "lib.editors.locate.values", "lib.editors.locate.subjects", apart=fingerprints.TOLD
        )
        return [self.identity, asdict(request), code]

    def get(self, request: Request) -> Found | None:
        """The stored search of one request; None if there is none."""
        content = self.cache.read("values", self._identity(request))
        if content is None:
            return None
        stored = load(content)
        first, last, updates, seconds = stored["numbers"].tolist()
        return Found(stored["value"][None], [first], [last], [int(updates)], seconds)

    def put(self, request: Request, found: Found) -> None:
        """Keep the search of one request."""
        numbers = [found.first[0], found.last[0], found.updates[0], found.seconds]
        tensors = {
            "value": found.values[0].cpu().contiguous(),
            "numbers": torch.tensor(numbers, dtype=torch.float64),
        }
        self.cache.write("values", self._identity(request), save(tensors))


def part_of(found: Found, number: int) -> Found:
    """The search of one request out of a batch's, with its share of the seconds."""
    count = len(found.values)
    return Found(
        found.values[number : number + 1],
        *([column[number]] for column in (found.first, found.last, found.updates)),
        found.seconds / count,
    )


def together(parts: list[Found], device: torch.device) -> Found:
    """Searches of single requests as one."""
    return Found(
        torch.cat([part.values.to(device) for part in parts]),
        [part.first[0] for part in parts],
        [part.last[0] for part in parts],
        [part.updates[0] for part in parts],
        sum(part.seconds for part in parts),
    )
