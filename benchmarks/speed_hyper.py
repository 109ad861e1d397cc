"""The comparisons of editors with a hyper-network: the solve, the capture, one meta-step."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from speed_setting import Size, invented_stream
from speed_timing import Agreement, Line, compare, timed
from torch import Tensor
from torch.func import functional_call

from lib.backbones.backbone import Backbone
from lib.backbones.passes.fact_passes import Pair, edit_pairs, rephrase_pairs, unrelated_pairs
from lib.backbones.passes.logits import FactRows, divergence, edit_loss, fact_rows, label_logits
from lib.data.records import Edit, Probe
from lib.editors.hypernet.capture import trace
from lib.editors.hypernet.malmen import Malmen, MalmenConfig
from lib.editors.hypernet.ridge import Ridge
from lib.editors.parts.sites import Site

SOLVE_TOLERANCE = 5e-3
"""Relative, float32: with fewer rows than columns the inverse of the large matrix, whose smallest
eigenvalue is the ridge, loses three digits; the small matrix does not."""

GRADIENT_TOLERANCE = 1e-3
"""Relative, float32: all gradients of the hyper-network as one vector."""


def hyper_lines(backbone: Backbone, size: Size) -> Iterator[Line]:
    """All comparisons of MALMEN."""
    for rows, width in size.ridges:
        yield solve(rows, width, size.repeats)
    yield capture(backbone, size)
    yield meta_step(backbone, size)


def solve(rows: int, width: int, repeats: int) -> Line:
    """Shift and both of its gradients: the official LU of the large matrix, once for each, or one
    Cholesky factor of the smaller one."""
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(rows, width, generator=generator)
    wanted, gamma = (torch.randn(count, width // 4, generator=generator) for count in (rows, width))

    def plain() -> tuple[Tensor, Tensor]:
        def inverse() -> Tensor:
            gram = keys.T @ keys + torch.eye(width)
            return torch.linalg.solve(gram, torch.eye(width))

        return inverse() @ (keys.T @ wanted), keys @ (inverse() @ gamma)

    def fast() -> tuple[Tensor, Tensor]:
        ridge = Ridge(keys, 1.0)
        return ridge.shift(wanted), ridge.wanted_gradient(gamma)

    form = "dual" if rows < width else "primal"
    what = f"ridge solve: {rows:,} rows, width {width:,}, {form}"
    return compare(what, timed(plain), timed(fast), _close(SOLVE_TOLERANCE), repeats)


def _close(tolerance: float) -> Callable[[Sequence[Tensor], Sequence[Tensor]], Agreement]:
    def agree(plain: Sequence[Tensor], fast: Sequence[Tensor]) -> Agreement:
        left, right = (torch.cat([part.flatten() for part in parts]) for parts in (plain, fast))
        error = float((left - right).norm() / left.norm())
        return Agreement(error <= tolerance, f"within {tolerance:.0e} (found {error:.1e})")

    return agree


def _editor(backbone: Backbone, size: Size) -> Malmen:
    last = backbone.n_blocks()
    sites = tuple(Site("mlp_out", block) for block in range(last - max(2, last // 5), last))
    editor = Malmen(backbone, MalmenConfig(sites=sites, rank=64, eta=1e-3))
    network = editor.new_network()
    torch.manual_seed(0)
    for name, parameter in network.named_parameters():
        if name.endswith(("up", "scale", "shift")):
            parameter.data += 1e-3 * torch.randn_like(parameter)
    editor.use_network(network)
    return editor


def _facts(size: Size) -> list[Edit]:
    stream = invented_stream()
    spare = [probe for probe in (*stream.upstream, *stream.near)]
    return [
        replace(
            edit,
            rephrases=(f"Tell me: {edit.prompt}",),
            locality=(Probe(f"loc:{i}", spare[i % len(spare)].prompt, "grey", "upstream"),),
        )
        for i, edit in enumerate(stream.edits[: size.training_rows])
    ]


def capture(backbone: Backbone, size: Size) -> Line:
    """Keys and output gradients of one mini-batch: edited weights with gradients, as the official
    hooks need, or everything frozen."""
    editor, facts = _editor(backbone, size), _facts(size)
    rows = fact_rows(backbone, *zip(*edit_pairs(facts), strict=True))
    weights = [module.weight for module in editor.weights.modules.values()]

    def plain() -> list[Tensor]:
        for weight in weights:
            weight.requires_grad_(True)
        try:
            traced = trace(backbone, rows, editor.sites)
        finally:
            for weight in weights:
                weight.requires_grad_(False)
                weight.grad = None
        return [part for pair in traced.rows.values() for part in pair]

    def fast() -> list[Tensor]:
        return [part for pair in trace(backbone, rows, editor.sites).rows.values() for part in pair]

    what = f"capture: {len(facts)} facts, {len(weights)} layers"
    line = compare(what, timed(plain), timed(fast), _close(0.0), size.repeats)
    editor.close()
    return line


def meta_step(backbone: Backbone, size: Size) -> Line:
    """All gradients of one meta-step: one graph through network, solve and edited model, every
    block run in every pass; or decoupled, on the kept outputs of the frozen blocks."""
    editor, facts = _editor(backbone, size), _facts(size)
    statistics, _ = editor.cache(
        editor.passes.mini_batches(edit_pairs(facts), editor.config.batch_rows), learn=True
    )
    statistics.close()
    frozen = {k: v.clone() for k, v in editor.network.state_dict().items()}
    pairs = [*edit_pairs(facts), *rephrase_pairs(facts), *unrelated_pairs(facts)]
    editor.passes.fill(pairs)  # an epoch pays for this once

    def gradients() -> list[Tensor]:
        return [p.grad for p in editor.network.parameters() if p.grad is not None]

    def reset() -> None:
        editor.network.load_state_dict(frozen)
        editor.network.zero_grad(set_to_none=True)

    def fast() -> list[Tensor]:
        reset()
        editor.meta_gradients(facts)
        return gradients()

    def plain() -> list[Tensor]:
        reset()
        _joint(editor, facts).backward()
        return gradients()

    what = f"meta-step: {len(facts)} facts, {len(editor.paths)} layers"
    line = compare(what, timed(plain), timed(fast), _close(GRADIENT_TOLERANCE), size.repeats)
    editor.close()
    return line


def _joint(editor: Malmen, facts: Sequence[Edit]) -> Tensor:
    """L_meta as one differentiable number, straight from its definition."""
    backbone, size = editor.backbone, editor.config.batch_rows

    def batches(pairs: Sequence[Pair]) -> Iterator[FactRows]:
        for batch in editor.passes.mini_batches(pairs, size):
            yield batch.rows

    shifted = {}
    traced = [trace(backbone, rows, editor.sites).rows for rows in batches(edit_pairs(facts))]
    for path in editor.paths:  # all rows enter the statistics before the first is standardised
        for rows in traced:
            editor.network.of(path)[0].standardiser.update(torch.cat(rows[path], dim=1))
    for path in editor.paths:
        net, module = editor.network.of(path)
        parts = [rows[path] for rows in traced]
        keys, gradients = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        wanted, wide = editor.wanted(path, keys, gradients).double(), keys.double()
        ridge = net.alpha[module].exp() * torch.eye(keys.shape[1], dtype=torch.float64)
        shift = torch.linalg.solve(wide.T @ wide + ridge, wide.T @ wanted).float()
        shifted[f"{path}.weight"] = editor.weights.modules[path].weight + shift.T

    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = backbone.model

        def forward(self, rows: FactRows) -> Tensor:
            return label_logits(backbone, rows)[0]

    whole = Whole()

    def edited(rows: FactRows) -> Tensor:
        return functional_call(whole, {f"model.{k}": v for k, v in shifted.items()}, (rows,))

    total = torch.zeros(())
    for rows in batches(rephrase_pairs(facts)):
        logits = edited(rows)
        labels = rows.labels[rows.labels != -100]
        total = total + edit_loss(logits, labels)
    for rows in batches(unrelated_pairs(facts)):
        with torch.no_grad():
            reference, _ = label_logits(backbone, rows)
        total = total + divergence(reference, edited(rows))
    return total
