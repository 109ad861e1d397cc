"""A backbone, and where each architecture keeps its parts: neutral names to module paths.

Editors ask for ("mlp_out", 4, "encoder") and never spell a module path. A family is chosen by
`config.model_type` alone; T5 comes in two shapes (gated v1.1, ReLU v1.0) that its configuration
tells apart, BERT and DistilBERT with or without a classification head.
"""

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from lib.errors import BackboneError
from lib.storage import fingerprints

PARTS = (
    "block", "attention", "attn_query", "attn_value", "attn_qkv", "mlp", "mlp_in", "mlp_gate",
    "mlp_out", "final_norm", "head", "embedding",
)  # fmt: skip


@dataclass(frozen=True)
class Family:
    """One architecture: its name, what it does, and its module paths.

    `kind` is "causal", "seq2seq" or "classifier". `stacks` maps a stack ("decoder", "encoder")
    to the path of its list of blocks; `per_block` maps a stack to the parts inside one block
    (paths relative to the block, "" for the block itself); `per_model` maps the remaining parts
    to full paths, in which {stack} stands for the stack. `table`: positions are read from a table,
    which ends; rotary ones that are computed and relative ones do not.
    """

    name: str
    kind: str
    stacks: dict[str, str]
    per_block: dict[str, dict[str, str]]
    per_model: dict[str, str]
    table: bool = False

    def stack(self, stack: str | None) -> str:
        """The stack that is meant: the only one, or for two the given one (default decoder).

        Raises BackboneError for a name that a two-stack family does not know.
        """
        if len(self.stacks) == 1:
            return next(iter(self.stacks))
        chosen = stack or "decoder"
        if chosen not in self.stacks:
            raise BackboneError(
                f"{self.name} has no stack {chosen!r}; choose one of {', '.join(self.stacks)}."
            )
        return chosen

    def parts(self, stack: str | None = None) -> tuple[str, ...]:
        """The neutral part names that this family has in the given stack."""
        inside = self.per_block[self.stack(stack)]
        return tuple(part for part in PARTS if part in inside or part in self.per_model)

    def path(self, part: str, index: int | None = None, stack: str | None = None) -> str:
        """The module path of a part; block parts need `index`, model parts take none."""
        chosen = self.stack(stack)
        inside = self.per_block[chosen]
        if part in self.per_model:
            if index is not None:
                raise BackboneError(f"{part!r} belongs to the whole model: give no block index.")
            return self.per_model[part].format(stack=chosen)
        if part not in inside:
            raise BackboneError(
                f"{self.name} has no part {part!r}; it has {', '.join(self.parts(stack))}."
            )
        if index is None:
            raise BackboneError(f"{part!r} lies in a block: give the block's index.")
        return f"{self.stacks[chosen]}.{index}.{inside[part]}".rstrip(".")


def _inside(parts: str) -> dict[str, str]:
    """The parts of a block by name, from "name path, name path"; "" is the block itself."""
    return {"block": ""} | dict(part.split() for part in parts.split(", "))


def _causal(
    name: str, blocks: str, parts: str, norm: str, embedding: str, table: bool = True
) -> Family:
    whole = {"final_norm": norm, "head": "lm_head", "embedding": embedding}
    return Family(name, "causal", {"decoder": blocks}, {"decoder": _inside(parts)}, whole, table)


GPT2 = _causal(
    "gpt2", "transformer.h",
    "attention attn, attn_qkv attn.c_attn, mlp mlp, mlp_in mlp.c_fc, mlp_out mlp.c_proj",
    "transformer.ln_f", "transformer.wte",
)  # fmt: skip
GPTJ = _causal(
    "gptj", "transformer.h",
    "attention attn, attn_query attn.q_proj, attn_value attn.v_proj, mlp mlp, mlp_in mlp.fc_in, "
    "mlp_out mlp.fc_out",
    "transformer.ln_f", "transformer.wte",
)  # fmt: skip
LLAMA = _causal(
    "llama", "model.layers",
    "attention self_attn, attn_query self_attn.q_proj, attn_value self_attn.v_proj, mlp mlp, "
    "mlp_in mlp.up_proj, mlp_gate mlp.gate_proj, mlp_out mlp.down_proj",
    "model.norm", "model.embed_tokens", table=False,
)  # fmt: skip
QWEN2 = replace(LLAMA, name="qwen2")  # Llama's modules; queries, keys and values have biases
GPT_NEOX = _causal(
    "gpt_neox", "gpt_neox.layers",
    "attention attention, attn_qkv attention.query_key_value, mlp mlp, "
    "mlp_in mlp.dense_h_to_4h, mlp_out mlp.dense_4h_to_h",
    "gpt_neox.final_layer_norm", "gpt_neox.embed_in", table=False,
)  # fmt: skip


def _t5_block(feed_forward: int, gated: bool) -> dict[str, str]:
    """The parts of a T5 block whose feed-forward sublayer is `layer.<feed_forward>`.

    Gated T5 names follow the official layer lists: `wi_0` (the activated matrix) is the first
    one that the papers edit, so it is "mlp_in"; the linear one, `wi_1`, is "mlp_gate".
    """
    dense = f"layer.{feed_forward}.DenseReluDense"
    inside = {"block": "", "attention": "layer.0.SelfAttention", "mlp": dense}
    if gated:
        inside |= {"mlp_in": f"{dense}.wi_0", "mlp_gate": f"{dense}.wi_1"}
    else:
        inside |= {"mlp_in": f"{dense}.wi"}
    return inside | {"mlp_out": f"{dense}.wo"}


def _t5(gated: bool) -> Family:
    return Family(
        name="t5",
        kind="seq2seq",
        stacks={"encoder": "encoder.block", "decoder": "decoder.block"},
        per_block={"encoder": _t5_block(1, gated), "decoder": _t5_block(2, gated)},
        per_model={
            "final_norm": "{stack}.final_layer_norm",
            "head": "lm_head",
            "embedding": "shared",
        },
    )


T5_GATED, T5_RELU = _t5(gated=True), _t5(gated=False)


def _encoder(name: str, blocks: str, parts: str, prefix: str) -> Family:
    """An encoder under `prefix`, with a classification head if it has one ("": bare)."""
    whole = {"embedding": f"{prefix}embeddings.word_embeddings"}
    head = {"head": "classifier"} if prefix else {}
    inside = {"encoder": _inside(parts)}
    stacks = {"encoder": f"{prefix}{blocks}"}
    return Family(name, "classifier", stacks, inside, whole | head, table=True)


# BERT has no module that is the whole MLP (two siblings of the attention) and no final norm.
_BERT = "attention attention, mlp_in intermediate.dense, mlp_out output.dense"
_DISTILBERT = "attention attention, mlp ffn, mlp_in ffn.lin1, mlp_out ffn.lin2"
BERT, BERT_WITHOUT_HEAD = (
    _encoder("bert", "encoder.layer", _BERT, prefix) for prefix in ("bert.", "")
)
DISTILBERT, DISTILBERT_WITHOUT_HEAD = (
    _encoder("distilbert", "transformer.layer", _DISTILBERT, prefix)
    for prefix in ("distilbert.", "")
)

_DECODERS = {family.name: family for family in (GPT2, GPTJ, LLAMA, QWEN2, GPT_NEOX)}
MODEL_TYPES = (*_DECODERS, "t5", "bert", "distilbert")


def family_of(model: PreTrainedModel) -> Family:
    """The family of a loaded model; BackboneError for an architecture without a map."""
    config = model.config
    if config.model_type == "t5":
        return T5_GATED if config.is_gated_act else T5_RELU
    if config.model_type == "bert":
        return BERT_WITHOUT_HEAD if model.base_model is model else BERT
    if config.model_type == "distilbert":
        return DISTILBERT_WITHOUT_HEAD if model.base_model is model else DISTILBERT
    if config.model_type not in _DECODERS:
        raise BackboneError(
            f"no module map for the architecture {config.model_type!r}; "
            f"known: {', '.join(MODEL_TYPES)}. Add one to lib/backbones/backbone.py."
        )
    return _DECODERS[config.model_type]


@dataclass
class Backbone:
    """A model in eval mode, without dropout or gradients, with its tokenizer and identity.

    `content` is the sha256 identity of weights and tokenizer; `provenance` and `substitution`
    are for the report (substitution None: it is the paper's own); `prefix` starts every prompt.
    """

    name: str
    family: Family
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    dtype: torch.dtype
    device: torch.device
    content: str
    provenance: str
    substitution: str | None
    prefix: str
    eos_id: int
    pad_id: int

    @property
    def arithmetic(self) -> dict[str, object]:
        """All that decides, bit by bit, what the backbone computes of a text, as plain values:
        weights and tokenizer, what starts every prompt, precision, libraries, kind of device and,
        on a processor, threads (one and two give different sums)."""
        return {
            "content": self.content,
            "prefix": self.prefix,
            "dtype": str(self.dtype),
            "device": self.device.type,
            "threads": torch.get_num_threads() if self.device.type == "cpu" else None,
            "versions": fingerprints.versions(),
        }

    def n_blocks(self, stack: str | None = None) -> int:
        """Number of blocks; `stack` ("decoder" by default) matters for T5 only."""
        return len(self.model.get_submodule(self.family.stacks[self.family.stack(stack)]))

    @property
    def longest(self) -> int | None:
        """Tokens that the model can read at once; None where positions have no end."""
        return self.model.config.max_position_embeddings if self.family.table else None

    def path(self, part: str, index: int | None = None, stack: str | None = None) -> str:
        """The module path of a neutral part, e.g. ("mlp_out", 4, "encoder") of a T5:
        encoder.block.4.layer.1.DenseReluDense.wo. BackboneError names the valid parts and range.
        """
        path = self.family.path(part, index, stack)
        if index is not None and not 0 <= index < self.n_blocks(stack):
            raise BackboneError(
                f"{self.name} has blocks 0 to {self.n_blocks(stack) - 1} in its "
                f"{self.family.stack(stack)}; there is no block {index}."
            )
        return path

    def module(self, part: str, index: int | None = None, stack: str | None = None) -> nn.Module:
        """The module at `path(part, index, stack)`."""
        return self.model.get_submodule(self.path(part, index, stack))


def cast(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The same model with its parameters in `dtype`, ties kept.

    Buffers stay: `model.to(bfloat16)` would also round the rotary frequencies, which
    `from_pretrained(dtype=bfloat16)` does not.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype
    return model


def prepare(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, device: torch.device
) -> PreTrainedModel:
    """The model as every backbone holds it: eval, frozen, no dropout, plain greedy decoding."""
    model = model.to(device).eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    _check_output_matrix(model)
    if model.can_generate():
        head = model.get_output_embeddings()
        head.register_forward_pre_hook(_contiguous)
        head.forward = partial(_output_matrix, head)  # a copy of the model gets its own
        config = model.config
        start = config.decoder_start_token_id if config.is_encoder_decoder else None
        # Checkpoints bring sampling temperatures and beam sizes; the study sets its own.
        model.generation_config = GenerationConfig(
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            decoder_start_token_id=start,
        )
    return model


def _contiguous(_head: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """What the output matrix reads, as rows that lie together: for a slice of hidden states (the
    last position of a prefill) a processor takes ten times as long, in bfloat16 500 times and
    gigabytes, because PyTorch then copies the matrix for each row."""
    return (inputs[0].contiguous(),)


FEW = {torch.float32: range(8, 16), torch.bfloat16: range(2, 33)}
"""How many rows are few for the output matrix on a processor with AVX-512, by precision: matrix
times rows is two to three times as fast as rows times matrix then. The logits are the same in
bfloat16, and in float32 up to rounding."""


def _output_matrix(head: nn.Linear, hidden: Tensor) -> Tensor:
    """Logits of hidden states, as `nn.Linear` gives them."""
    rows = hidden.numel() // hidden.shape[-1]
    few = hidden.device.type == "cpu" and rows in FEW.get(hidden.dtype, ())
    if not few or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return functional.linear(hidden, head.weight, head.bias)
    logits = (head.weight @ hidden.reshape(rows, -1).T).T.contiguous()
    logits = logits if head.bias is None else logits + head.bias
    return logits.view(*hidden.shape[:-1], -1)


def _check_output_matrix(model: PreTrainedModel) -> None:
    """T5 v1.1 has an output matrix of its own; transformers 5 ties it on the slightest occasion."""
    if model.config.model_type == "t5" and not model.config.scale_decoder_outputs:
        own = model.lm_head.weight.data_ptr() != model.shared.weight.data_ptr()
        if not own:
            raise BackboneError(
                "the T5 v1.1 output matrix was tied to the embedding while loading; its checkpoint "
                "must hold both lm_head.weight and shared.weight."
            )
