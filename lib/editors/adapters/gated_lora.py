"""One LoRA whose rank axis is cut into blocks, and a gate that picks blocks per sample.

An unmodified PEFT adapter of rank R = n_blocks * rank_per_block on the named linear layers, and
one forward hook per layer that multiplies the output of `lora_A` [B, T, R] by a gate [B, R] (or
[L, B, R], one for each of the L layers): zero switches a block off, and a gate of zeros leaves the
logits bit-identical to the backbone. MELO's gate is hard (one block per row), ELDER's is soft.
"""

import contextlib
import copy
import json
import math
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lib.errors import EditorError

ADAPTER = "default"


class GatedLora:
    """The adapter, its gate, and the slices of its blocks.

    `bound` is the half-width of A's uniform initialisation; B starts at zero. `sites` are full
    module paths; a path that names no linear layer is an error (PEFT alone would skip it).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        sites: Sequence[str],
        *,
        n_blocks: int,
        rank_per_block: int,
        bound: float,
        seed: int,
    ) -> None:
        self.n_blocks, self.rank_per_block = n_blocks, rank_per_block
        self.rank = n_blocks * rank_per_block
        self.model = model
        self.gate: Tensor | None = None
        kinds = {type(_linear(model, site)) for site in sites}
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.rank,
            lora_dropout=0.0,
            target_modules=list(sites),
            bias="none",
            fan_in_fan_out=Conv1D in kinds,
        )
        with warnings.catch_warnings():
            # PEFT asks every model about gradient checkpointing, which transformers deprecates.
            warnings.simplefilter("ignore", FutureWarning)
            self.peft = PeftModel(model, config, adapter_name=ADAPTER)
        # Only modules that PEFT wrapped have these; the count guards against silent mismatches.
        self.layers = {site: model.get_submodule(site) for site in sites}
        self.initialise(bound, seed)
        self.freeze()
        self._hooks = [
            layer.lora_A[ADAPTER].register_forward_hook(partial(self._apply_gate, number))
            for number, layer in enumerate(self.layers.values())
        ]

    @torch.no_grad()
    def initialise(self, bound: float, seed: int) -> None:
        """A ~ U(-bound, bound), one draw for all blocks; B = 0."""
        generator = torch.Generator().manual_seed(seed)
        for layer in self.layers.values():
            a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
            draw = torch.rand(a.shape, generator=generator, dtype=torch.float32) * 2 - 1
            a.copy_(draw * bound)
            b.zero_()

    def _apply_gate(
        self, number: int, _module: nn.Module, _inputs: tuple, output: Tensor
    ) -> Tensor:
        if self.gate is None:
            return output * 0.0
        gate = self.gate if self.gate.ndim == 2 else self.gate[number]
        if gate.shape[0] not in (1, output.shape[0]):
            # Beam search repeats each row of the batch for its beams.
            gate = gate.repeat_interleave(output.shape[0] // gate.shape[0], dim=0)
        return output * gate.view(gate.shape[0], *[1] * (output.ndim - 2), -1)

    @contextlib.contextmanager
    def gated(self, gate: Tensor | None) -> Iterator[None]:
        """Passes inside the context use this gate [B, R] or [L, B, R] (None: adapter off)."""
        before, self.gate = self.gate, gate
        try:
            yield
        finally:
            self.gate = before

    def one_block_gate(self, blocks: Sequence[int], value: float) -> Tensor:
        """A gate [B, R] that is `value` on each row's block and 0 elsewhere; -1 is no block."""
        gate = torch.zeros(len(blocks), self.n_blocks, self.rank_per_block)
        for row, block in enumerate(blocks):
            if block >= 0:
                gate[row, block] = value
        device = next(iter(self.layers.values())).lora_A[ADAPTER].weight.device
        return gate.view(len(blocks), self.rank).to(device)

    def parameters(self) -> list[nn.Parameter]:
        """All A and B, in site order."""
        return [
            parameter
            for layer in self.layers.values()
            for parameter in (layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight)
        ]

    def train_parameters(self) -> list[nn.Parameter]:
        """The same, switched to require gradients."""
        for parameter in self.parameters():
            parameter.requires_grad_(True)
        return self.parameters()

    def freeze(self) -> None:
        """No gradients, no gradient buffers."""
        for parameter in self.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None

    @contextlib.contextmanager
    def one_block(self, block: int) -> Iterator[list[nn.Parameter]]:
        """Passes inside the context hold one block alone, with gates [B, rank_per_block]; gives its
        A and B in site order, which require gradients. What became of them is in the adapter
        afterwards; after an error the adapter is as it was. The other blocks, which a gate would
        multiply by zero, cost nothing then."""
        part = self._slice(block)
        halves = [
            (matrices[ADAPTER], letter)
            for layer in self.layers.values()
            for matrices, letter in ((layer.lora_A, "A"), (layer.lora_B, "B"))
        ]
        whole = [half.weight for half, _ in halves]
        own = [
            nn.Parameter((weight[part] if letter == "A" else weight[:, part]).detach().clone())
            for weight, (_, letter) in zip(whole, halves, strict=True)
        ]
        for (half, _), parameter in zip(halves, own, strict=True):
            half.weight = parameter
        try:
            yield own
        finally:
            for (half, _), weight in zip(halves, whole, strict=True):
                half.weight = weight
        names = [f"{site}.{letter}" for site in self.layers for letter in "AB"]
        self.write(block, dict(zip(names, (one.detach() for one in own), strict=True)))

    def _slice(self, blocks: int | slice) -> slice:
        if isinstance(blocks, int):
            blocks = slice(blocks, blocks + 1)
        return slice(blocks.start * self.rank_per_block, blocks.stop * self.rank_per_block)

    def read(self, blocks: int | slice) -> dict[str, Tensor]:
        """Copies of A [r, m] and B [n, r] of some blocks, by site."""
        part = self._slice(blocks)
        return {
            f"{site}.{letter}": (weight[part] if letter == "A" else weight[:, part])
            .detach()
            .clone()
            for site, layer in self.layers.items()
            for letter, weight in (
                ("A", layer.lora_A[ADAPTER].weight),
                ("B", layer.lora_B[ADAPTER].weight),
            )
        }

    @torch.no_grad()
    def write(self, blocks: int | slice, tensors: dict[str, Tensor]) -> None:
        """Put back what `read` returned."""
        part = self._slice(blocks)
        for site, layer in self.layers.items():
            layer.lora_A[ADAPTER].weight[part] = tensors[f"{site}.A"]
            layer.lora_B[ADAPTER].weight[:, part] = tensors[f"{site}.B"]

    def adapter_state(
        self, used_blocks: int, multiplier: float = 1.0
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The used blocks as a PEFT adapter of rank used_blocks * p: (tensors, LoraConfig).

        `multiplier` is the gate's value on an active block; it goes into lora_alpha, so that the
        adapter has the right scale elsewhere. PEFT alone has no gate: there all blocks are on.
        """
        rank = used_blocks * self.rank_per_block
        tensors = {}
        for name, weight in get_peft_model_state_dict(self.peft, adapter_name=ADAPTER).items():
            kept = weight[:rank] if "lora_A" in name else weight[:, :rank]
            tensors[name] = kept.detach().clone().contiguous()
        config = copy.deepcopy(self.peft.peft_config[ADAPTER])
        config.r, config.lora_alpha = rank, rank * multiplier
        config.inference_mode = True
        described = config.to_dict()
        # PEFT keeps sets; JSON wants a stable order.
        described["target_modules"] = sorted(self.layers)
        return tensors, {k: v for k, v in described.items() if _is_plain(v)}

    @torch.no_grad()
    def load_adapter_state(self, tensors: dict[str, Tensor]) -> None:
        """Write the leading blocks from tensors that `adapter_state` gave."""
        own = get_peft_model_state_dict(self.peft, adapter_name=ADAPTER)
        if set(own) != set(tensors):
            raise EditorError("the saved adapter belongs to other layers than this editor's")
        for name, weight in tensors.items():
            module_path, _, letter = name.removesuffix(".weight").rpartition(".")
            layer = self.peft.get_submodule(module_path)
            target = getattr(layer, letter)[ADAPTER].weight
            if letter == "lora_A":
                target[: weight.shape[0]] = weight
            else:
                target[:, : weight.shape[1]] = weight

    def remove(self) -> PreTrainedModel:
        """Take the adapter out; the model's modules are the ones it had before."""
        for handle in self._hooks:
            handle.remove()
        self._hooks = []
        return self.peft.unload()


def _linear(model: PreTrainedModel, site: str) -> nn.Module:
    try:
        module = model.get_submodule(site)
    except AttributeError as error:
        raise EditorError(f"the backbone has no module {site!r} to adapt") from error
    if not isinstance(module, (nn.Linear, Conv1D)):
        raise EditorError(f"{site!r} is a {type(module).__name__}, not a linear layer")
    return module


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str, list, dict))


def rank_bound(rank: int) -> float:
    """The half-width of MELO and ELDER: Kaiming-uniform whose fan-in is read as the rank,
    1/sqrt(R) (melo 2.3, elder 2.4)."""
    return 1.0 / math.sqrt(rank)


def write_adapter_config(folder: Path, config: dict[str, Any]) -> None:
    """`adapter_config.json`, so that PEFT can read the adapter without this study."""
    (folder / "adapter_config.json").write_text(
        json.dumps(config, indent=1, sort_keys=True), "utf-8"
    )
