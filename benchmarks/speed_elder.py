"""ELDER: one product for all experts and for all distances, and a prefix that stands on another."""

from collections.abc import Callable

import torch
from speed_setting import Size, invented_stream
from speed_timing import Agreement, Line, compare, exactly, timed
from torch import Tensor, nn

from lib.backbones.backbone import Backbone
from lib.backbones.passes import decoding
from lib.backbones.passes.hooks import map_tensors
from lib.backbones.passes.prefix import FrozenPrefix
from lib.editors.adapters.elder_routing import hamming
from lib.editors.adapters.gated_lora import GatedLora

LAYERS, EXPERTS, CHOSEN = 6, 4, 2
STORED = 1000
ROWS, TOKENS, WIDTH, INNER, RANK = 8, 24, 576, 1536, 8


def invented_codes(count: int, seed: int) -> Tensor:
    """Random codes [count, LAYERS, EXPERTS] with CHOSEN ones per layer."""
    drawn = torch.rand(count, LAYERS, EXPERTS, generator=torch.Generator().manual_seed(seed))
    codes = torch.zeros(count, LAYERS, EXPERTS, dtype=torch.bool)
    return codes.scatter(-1, drawn.topk(CHOSEN, dim=-1).indices, True)


def loop_distances(codes: Tensor, stored: Tensor) -> list[list[int]]:
    """The definition: compare each code with each stored one and count the differing digits."""
    return [[int((code ^ other).sum()) for other in stored] for code in codes]


class OneLayer(nn.Module):
    """A single linear layer as a model, for an adapter to stand on."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(INNER, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def mixture_line(repeats: int) -> Line:
    """y = W x + sum_i w_i B_i A_i x: a loop over rows and chosen experts against one gated LoRA."""
    torch.manual_seed(0)
    model = OneLayer()
    lora = GatedLora(model, ["layer"], n_blocks=EXPERTS, rank_per_block=RANK, bound=0.02, seed=0)
    layer = lora.layers["layer"]
    a, b = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
    b.copy_(0.02 * torch.randn(b.shape))
    x, weights = torch.randn(ROWS, TOKENS, INNER), torch.rand(ROWS, EXPERTS)
    weights[:, CHOSEN:] = 0.0
    w, bias = layer.base_layer.weight, layer.base_layer.bias

    @torch.no_grad()
    def loop() -> Tensor:
        outputs = []
        for row, own in zip(x, weights, strict=True):
            y = row @ w.T + bias
            for expert in own.nonzero()[:, 0].tolist():
                part = slice(expert * RANK, (expert + 1) * RANK)
                y = y + own[expert] * (row @ a[part].T @ b[:, part].T)
            outputs.append(y)
        return torch.stack(outputs)

    @torch.no_grad()
    def gated() -> Tensor:
        with lora.gated(weights.repeat_interleave(RANK, dim=1)):
            return model(x)

    what = f"mixture of {CHOSEN} of {EXPERTS} experts on one layer, {ROWS} rows"
    return compare(what, timed(loop), timed(gated), within(1e-4), repeats)


def stacked_prefix_line(backbone: Backbone, size: Size) -> Line:
    """Rows prepared for editors of two depths: each from the first block, or one on the other."""
    edits = invented_stream().edits[: size.training_rows]
    prompts, targets = tuple(e.prompt for e in edits), tuple(e.target for e in edits)
    first = size.config["sites"][0]["block"]
    prefixes = [FrozenPrefix(backbone, first), FrozenPrefix(backbone, first + 1)]

    def prepared(stacked: bool) -> list[Tensor]:
        lower = decoding.prepare(backbone, prefixes[0], prompts, targets)
        below = (prefixes[0], lower) if stacked else None
        upper = decoding.prepare(backbone, prefixes[1], prompts, targets, below=below)
        found: list[Tensor] = []
        map_tensors([lower.state.output, upper.state.output], lambda t: found.append(t) or t)
        return found

    def equal(plain: list[Tensor], fast: list[Tensor]) -> Agreement:
        return Agreement(bool(plain) and all(map(torch.equal, plain, fast)), "states, bit for bit")

    what = f"prefixes of {first} and {first + 1} blocks, {len(edits)} rows"
    plain, fast = timed(lambda: prepared(False)), timed(lambda: prepared(True))
    return compare(what, plain, fast, equal, size.repeats)


def within(tolerance: float) -> Callable[[Tensor, Tensor], Agreement]:
    """Equal up to a share of the largest number."""

    def agree(plain: Tensor, fast: Tensor) -> Agreement:
        found = float((plain - fast).abs().max() / plain.abs().max())
        return Agreement(found <= tolerance, f"within {tolerance:.0e} (found {found:.1e})")

    return agree


def elder_lines(backbone: Backbone, size: Size) -> list[Line]:
    """Distances, the mixture, and prepared rows."""
    codes, stored = invented_codes(size.index_queries, 1), invented_codes(STORED, 2)
    distances = compare(
        f"distances of {size.index_queries} codes to {STORED:,} stored",
        timed(lambda: loop_distances(codes, stored)),
        timed(lambda: hamming(codes, stored).tolist()),
        exactly,
        size.repeats,
    )
    return [distances, mixture_line(size.repeats), stacked_prefix_line(backbone, size)]
