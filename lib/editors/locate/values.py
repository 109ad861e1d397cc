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
from lib.backbones.passes.logits import precise
from lib.backbones.passes.prefix import FrozenPrefix, PrefixState
from lib.backbones.text_states import key_width
from lib.editors.locate.subjects import Request, Rows, contextual, encode_rows
from lib.storage import fingerprints
from lib.storage.cache import Cache

BUDGET = {"cpu": 2**29, "cuda": 2**32}
"""Bytes that a search may hold for its backward passes, by kind of device. They bound memory and
decide no result but for rounding, so they are not what happens to be free."""


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
    """Values [B, d] = initial + delta, and per request the loss at its first and last
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


def requests_at_once(backbone: Backbone, block: int, wanted: ValueRows) -> int:
    """Of how many of these requests the search above `block` fits into the budget, at least one.

    A token keeps about eight vectors of the residual width and four of the MLP's in each block, a
    label three vectors of log-probabilities.
    """
    rows, prompts = wanted.rows, ~wanted.kl
    requests = int(wanted.kl.sum())
    head = backbone.model.get_output_embeddings().weight
    width = 8 * head.shape[1] + 4 * key_width(backbone, block)
    tokens = int(prompts.sum()) * int((rows.lengths - rows.subject)[prompts].max()) + requests
    above = backbone.n_blocks() - block - 1
    numbers = tokens * above * width + 3 * (len(wanted.labels) + requests) * head.shape[0]
    fits = BUDGET[backbone.device.type] * requests // (numbers * head.element_size())
    return max(1, min(requests, fits))


@torch.enable_grad()
def search_values(
    backbone: Backbone, block: int, wanted: ValueRows, state: PrefixState, initial: Tensor,
    search: Search,
) -> Found:  # fmt: skip
    """Optimise one delta per request.

    `state` is what `FrozenPrefix(backbone, block + 1).record` gave for `wanted.rows.batch` under
    the weights in force; `initial` [B, d] the unedited output at each request's subject, in float32
    or better.
    """
    began = time.perf_counter()
    delta = nn.Parameter(torch.zeros_like(initial))
    adam = torch.optim.Adam([delta], lr=search.lr)
    scale = initial.norm(dim=1)
    bound = search.clamp * scale[:, None]
    objective = Objective.of(backbone, block, wanted, state)
    active = torch.arange(len(initial), device=initial.device)
    first, last, before = None, torch.zeros_like(scale), None
    updates = torch.zeros_like(active)
    for step in range(search.steps):
        chosen = delta[active]
        nll, log_p = objective.losses(chosen)
        before = log_p.detach() if before is None else before
        kl = (log_p.exp() * (log_p - before)).sum(dim=1)
        decay = chosen.norm(dim=1) / scale[active] ** 2
        loss = nll + search.kl_factor * kl + search.weight_decay * decay
        last[active] = loss.detach().to(last)
        first = last.clone() if first is None else first
        going = ~(loss.detach() < search.stop_loss)
        if step == search.steps - 1 or not going.any():
            break
        loss[going].sum().backward()
        if not going.all():
            active, before, objective = active[going], before[going], objective.keep(going)
        with torch.no_grad():
            before_step = delta.clone()
            adam.step()
            adam.zero_grad(set_to_none=True)
            # Adam's momentum would still move a finished request.
            moved = delta[active]
            length = moved.norm(dim=1, keepdim=True)
            moved = torch.where(length > bound[active], moved * (bound[active] / length), moved)
            delta.copy_(before_step.index_copy(0, active, moved))
        updates[active] += 1
    numbers = (column.tolist() for column in (first, last, updates))
    return Found(initial + delta.detach(), *numbers, time.perf_counter() - began)


@dataclass(frozen=True)
class Tail:
    """R rows from the subject's last token on, above one block, with everything before cached.

    `ids`, `positions` [R, W]; `mask` [R, H + W] over H cached columns and these; `stream` the
    block's output at them; `cache` keys and values of the cached columns in the blocks above.
    """

    backbone: Backbone
    above: FrozenPrefix
    ids: Tensor
    positions: Tensor
    mask: Tensor
    stream: Any
    cache: list[tuple[Tensor, Tensor]]

    @classmethod
    def of(
        cls, backbone: Backbone, block: int, rows: Rows, lengths: Tensor, state: PrefixState
    ) -> "Tail":
        """Of the first `lengths` [R] tokens of each row, its subject in the rear among them."""
        ids, heads = rows.batch.input_ids, rows.subject
        above, device = FrozenPrefix(backbone, block + 1), ids.device
        most = int(heads.max())
        place = torch.arange(most, device=device) - (most - heads[:, None])
        head_index, head_mask = place.clamp(min=0), (place >= 0).long()
        offset = torch.arange(int((lengths - heads).max()), device=device)
        tail_index = (heads[:, None] + offset).clamp(max=ids.shape[1] - 1)
        tail_mask = (offset < (lengths - heads)[:, None]).long()
        cache = DynamicCache()
        if most:
            with (
                torch.no_grad(),
                above.replay(PrefixState(_columns(state.output, head_index), {}, {}, len(rows))),
            ):
                backbone.model.base_model(
                    input_ids=ids.gather(1, head_index),
                    attention_mask=head_mask,
                    position_ids=head_index,
                    past_key_values=cache,
                    use_cache=True,
                )
        return cls(
            backbone,
            above,
            ids.gather(1, tail_index),
            tail_index,
            torch.cat([head_mask, tail_mask], dim=1),
            _columns(state.output, tail_index),
            [(layer.keys, layer.values) for layer in cache.layers[above.first :]],
        )

    def keep(self, rows: Tensor) -> "Tail":
        """The tail of the rows that `rows` [R] (bool) marks."""
        return Tail(
            self.backbone,
            self.above,
            *(tensor[rows] for tensor in (self.ids, self.positions, self.mask)),
            _first_tensor(self.stream, lambda hidden: hidden[rows]),
            [(keys[rows], values[rows]) for keys, values in self.cache],
        )

    def hidden(self, added: Tensor) -> Tensor:
        """The last hidden states [R, W, d] with `added` [R, d] at the subject's last token."""

        def with_delta(stream: Tensor) -> Tensor:
            return torch.cat([stream[:, :1] + added[:, None].to(stream), stream[:, 1:]], dim=1)

        stream, cache = _first_tensor(self.stream, with_delta), self._prefilled()
        with self.above.replay(PrefixState(stream, {}, {}, len(self.ids))):
            return self.backbone.model.base_model(
                input_ids=self.ids,
                attention_mask=self.mask,
                position_ids=self.positions,
                past_key_values=cache,
                use_cache=cache is not None,
            ).last_hidden_state

    def _prefilled(self) -> DynamicCache | None:
        if not self.cache:
            return None
        cache, cached = DynamicCache(), self.mask.shape[1] - self.ids.shape[1]
        # Blocks below are replayed, not run: their entries only tell the mask how much is cached.
        nothing = self.mask.new_zeros((len(self.ids), 1, cached, 1), dtype=torch.float32)
        for layer in range(self.above.first):
            cache.update(nothing, nothing, layer)
        for number, (keys, values) in enumerate(self.cache):
            cache.update(keys, values, self.above.first + number)
        return cache


@dataclass(frozen=True)
class Objective:
    """What the deltas of A requests are judged by: `prompts`, their rows [R] with the answer, each
    of the request `owner` [R], and `essence`, the rows "{subject} is a" [A], of which nothing
    behind the subject is run. `labels` [N] stand at `row`, `column` [N] of `prompts`."""

    prompts: Tail
    essence: Tail
    owner: Tensor
    labels: Tensor
    row: Tensor
    column: Tensor

    @classmethod
    def of(
        cls, backbone: Backbone, block: int, wanted: ValueRows, state: PrefixState
    ) -> "Objective":
        """Of all rows of a search."""
        inside = (~wanted.kl).cumsum(0) - 1  # a row's number among the prompts
        tails = []
        for chosen in (~wanted.kl, wanted.kl):
            some = chosen.nonzero()[:, 0]
            rows = wanted.rows.select(some)
            lengths = rows.subject + 1 if tails else rows.lengths
            tails.append(Tail.of(backbone, block, rows, lengths, state.select(some)))
        column = wanted.label_column - wanted.rows.subject[wanted.label_row]
        owner = wanted.rows.owner[~wanted.kl]
        return cls(*tails, owner, wanted.labels, inside[wanted.label_row], column)

    def keep(self, going: Tensor) -> "Objective":
        """The objective of the requests that `going` [A] (bool) marks."""
        rows = going[self.owner]
        at = rows[self.row]
        return Objective(
            self.prompts.keep(rows),
            self.essence.keep(going),
            (going.cumsum(0) - 1)[self.owner[rows]],
            self.labels[at],
            (rows.cumsum(0) - 1)[self.row[at]],
            self.column[at],
        )

    def losses(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        """With delta [A, d] added: mean NLL per target token, averaged over contexts [A], and
        log-probabilities at the subject of the KL row [A, V]."""
        hidden = self.prompts.hidden(delta[self.owner])
        essence = self.essence.hidden(delta)
        head = self.prompts.backbone.model.get_output_embeddings()
        logits = head(torch.cat([hidden[self.row, self.column], essence[:, 0]]))
        log_p = precise(logits).log_softmax(dim=-1)
        picked = log_p[: len(self.row)].gather(1, self.labels[:, None])[:, 0]
        request = self.owner[self.row]
        per_request = torch.bincount(request, minlength=len(delta))
        # Every row of a request has the same labels: the mean over rows of means over tokens.
        nll = -picked.new_zeros(len(delta)).index_add(0, request, picked) / per_request
        return nll, log_p[len(self.row) :]


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
    """Values that are kept. `identity` says everything that decides a value but which request of a
    search it is of."""

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
