"""The comparisons of locate-and-edit: key statistics, value search, closed-form solve."""

from collections.abc import Callable, Iterator, Sequence

import torch
from speed_setting import Size, invented_stream
from speed_timing import Agreement, Line, compare, timed
from torch import Tensor, nn

from lib.backbones.backbone import Backbone
from lib.backbones.passes.hooks import capture, first_tensor
from lib.backbones.passes.prefix import FrozenPrefix
from lib.backbones.text_states import add_documents, key_width
from lib.data import invented
from lib.editors.locate.solve import inverse_of, solve_cholesky, solve_woodbury
from lib.editors.locate.subjects import Request, at_subject
from lib.editors.locate.values import Search, ValueRows, search_values, value_rows

CONTEXTS = ("", "The old harbour lies behind the hill. ", "Because of the wind it rained. ")
SEARCH = Search(steps=6)
SUM_TOLERANCE = 1e-5
"""Relative, Frobenius: float32 products over other shapes."""

VALUE_TOLERANCE = 1e-3
"""Relative: Adam divides by the root of squared gradients, which amplifies the last digits."""

SOLVE_TOLERANCE = 1e-9
"""Relative, float64, condition number about 1e6."""


def locate_lines(backbone: Backbone, size: Size) -> Iterator[Line]:
    """All comparisons of locate-and-edit."""
    blocks = range(1, max(2, backbone.n_blocks() // 4) + 1)
    yield statistics(backbone, blocks, size)
    yield value_search(backbone, blocks[-1], size)
    for width, batch in size.solves:
        yield from solves(width, batch, size.repeats)


def _close(tolerance: float, what: str) -> Callable[[Tensor, Tensor], Agreement]:
    def agree(plain: Tensor, fast: Tensor) -> Agreement:
        error = float((plain - fast).norm() / plain.norm())
        return Agreement(error <= tolerance, f"{what} within {tolerance:.0e} (found {error:.1e})")

    return agree


def statistics(backbone: Backbone, blocks: Sequence[int], size: Size) -> Line:
    """Second moments of all edited blocks: one pass for all, or one pass for each."""
    texts = invented.sentences()[: size.documents]

    def sums_of(chosen: Sequence[int]) -> dict[int, Tensor]:
        widths = {block: key_width(backbone, block) for block in chosen}
        sums = {block: torch.zeros(width, width) for block, width in widths.items()}
        with torch.no_grad():
            add_documents(backbone, texts, 64, sums)
        return sums

    def together() -> Tensor:
        return torch.stack(list(sums_of(blocks).values()))

    def apart() -> Tensor:
        return torch.stack([sums_of([block])[block] for block in blocks])

    what = f"key statistics of {len(blocks)} blocks, {len(texts)} documents"
    return compare(what, timed(apart), timed(together), _close(SUM_TOLERANCE, "sums"), size.repeats)


def value_search(backbone: Backbone, block: int, size: Size) -> Line:
    """Targets of one batch: the official loop over requests, or all requests together."""
    edits = invented_stream().edits[: size.requests]
    requests = [Request.of(edit, "the benchmark") for edit in edits]

    def batched() -> Tensor:
        wanted = value_rows(backbone, requests, CONTEXTS)
        with capture(backbone.module("block", block)) as seen:
            state = FrozenPrefix(backbone, block + 1).record(wanted.rows.batch)
        each = len(CONTEXTS) + 1
        initial = at_subject(first_tensor(seen.output), wanted.rows)[::each].float()
        return search_values(backbone, block, wanted, state, initial, SEARCH).values

    def looped() -> Tensor:
        return torch.stack([_plain_search(backbone, block, request) for request in requests])

    what = f"value search: {len(requests)} requests, {len(CONTEXTS) + 1} rows each"
    return compare(
        what, timed(looped), timed(batched), _close(VALUE_TOLERANCE, "values"), size.repeats
    )


def _plain_search(backbone: Backbone, block: int, request: Request) -> Tensor:
    """One request: every step a pass of all its rows through all blocks, delta put in by a hook."""
    wanted: ValueRows = value_rows(backbone, [request], CONTEXTS)
    rows, module = wanted.rows, backbone.module("block", block)
    place = torch.arange(len(rows)), rows.subject

    def logits() -> Tensor:
        out = backbone.model(
            **rows.batch.inputs(), position_ids=rows.batch.positions(), use_cache=False
        )
        return out.logits.log_softmax(dim=-1)

    with torch.no_grad(), capture(module) as seen:
        start = logits()[-1, rows.subject[-1]]
    initial = first_tensor(seen.output)[0, rows.subject[0]]
    delta = torch.zeros_like(initial, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=SEARCH.lr)

    def added(_module: nn.Module, _inputs: tuple, output: Tensor | tuple) -> Tensor | tuple:
        hidden = first_tensor(output)
        hidden = hidden.index_put(place, delta.expand(len(rows), -1), accumulate=True)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    for _ in range(SEARCH.steps - 1):
        handle = module.register_forward_hook(added)
        log_p = logits()
        handle.remove()
        nll = -log_p[wanted.label_row, wanted.label_column, wanted.labels].mean()
        current = log_p[-1, rows.subject[-1]]
        kl = (current.exp() * (current - start)).sum()
        decay = SEARCH.weight_decay * delta.norm() / initial.norm() ** 2
        loss = nll + SEARCH.kl_factor * kl + decay
        if float(loss.detach()) < SEARCH.stop_loss:
            break
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            bound = SEARCH.clamp * initial.norm()
            if delta.norm() > bound:
                delta.mul_(bound / delta.norm())
    return (initial + delta).detach()


def solves(width: int, batch: int, repeats: int) -> Iterator[Line]:
    """X = (C + K K^T)^-1 K: LU of the sum (official) against Cholesky, and against a kept C^-1."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.logspace(0, -3, width, dtype=torch.float64)
    text = torch.randn(width, 2 * width, generator=generator, dtype=torch.float64) * spread[:, None]
    moment = text @ text.T + 1e-6 * torch.eye(width, dtype=torch.float64)
    keys = torch.randn(width, batch, generator=generator, dtype=torch.float64)
    inverse = inverse_of(moment)

    def lu() -> Tensor:
        return torch.linalg.solve(moment + keys @ keys.T, keys)

    agree = _close(SOLVE_TOLERANCE, "solution")
    for name, way in (
        ("Cholesky", lambda: solve_cholesky(moment, keys)),
        ("kept inverse, updated", lambda: solve_woodbury(inverse, keys)[0]),
    ):
        what = f"solve, width {width:,}, batch {batch}: {name}"
        yield compare(what, timed(lu), timed(way), agree, repeats)
