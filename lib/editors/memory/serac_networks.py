"""SERAC's two networks: the scope classifier and the counterfactual model."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lib.backbones.backbone import Backbone
from lib.backbones.encoding import encode_prompts
from lib.backbones.sources import loading
from lib.data.records import Edit
from lib.editors.adapters.vector_index import NONE, exact_distances
from lib.editors.base import EditorConfig
from lib.editors.parts.stand_in import StandIn, check_alike
from lib.errors import EditorError


@dataclass(frozen=True)
class SeracConfig(EditorConfig):
    """Defaults: EasyEdit's for GPT2-XL (elder 7); for Llama 2 the counterfactual is llama-160m.

    `counterfactual`: a causal backbone that shares the base's vocabulary. `batch_rows` facts make
    one step of Adam, so the default is EasyEdit's batch of 1 accumulated over 10; `iterations`
    counts facts, `classifier_iterations` those of the classifier (None: as many). `cedit` weighs
    what an edit should change, against what it should leave alone. `trained_blocks` and
    `classifier_blocks`: train the last so many blocks alone (0: every weight). `scale`: where the
    learned scale begins.
    """

    classifier: str = "distilbert-base-cased"
    counterfactual: str = "gpt2"
    scale: float = 1.0
    lr: float = 1e-5
    classifier_lr: float = 1e-5
    iterations: int = 10_000
    classifier_iterations: int | None = None
    batch_rows: int = 10
    classifier_rows: int = 10
    cedit: float = 0.1
    trained_blocks: int = 0
    classifier_blocks: int = 0


SEPARATOR = "\n"  # between edit and input, for the counterfactual model (our choice)
THRESHOLD = 0.5  # an edit reaches an input whose s is above this (Mitchell et al.)
TOGETHER = 64  # texts in one pass of the classifier


def edit_text(edit: Edit) -> str:
    """z: the edit as one line, prompt and new answer (our choice of wording)."""
    return f"{edit.prompt} {edit.target.strip()}"


def exponents(inputs: Tensor, edits: Tensor, log_scale: Tensor) -> Tensor:
    """-log s = ||g(z) - g(x)||^2 * scale, [B, E] of inputs [B, d] and edits [E, d]."""
    return exact_distances(inputs, edits) ** 2 * log_scale.exp()


def matches(inputs: Tensor, edits: Tensor, log_scale: Tensor) -> Tensor:
    """The most similar edit of each input [B], NONE where s is not above THRESHOLD."""
    best, edit = (-exponents(inputs, edits, log_scale)).exp().max(dim=1)
    return edit.masked_fill(best <= THRESHOLD, NONE)


class SeracNetworks:
    """Classifier g (float32) with its scale, and counterfactual model h in the base's precision.

    Raises EditorError if h does not share the base's vocabulary, or if g is no encoder.
    """

    def __init__(self, backbone: Backbone, config: SeracConfig) -> None:
        device = backbone.device
        self.classifier = loading.load(config.classifier, device=device, num_labels=0)
        self.counterfactual = loading.load(
            config.counterfactual, dtype=backbone.dtype, device=device
        )
        if self.classifier.family.kind != "classifier":
            raise EditorError(f"{config.classifier} cannot tell the scope: choose a BERT encoder")
        check_alike(backbone, self.counterfactual)
        log_scale = torch.tensor(math.log(config.scale), device=device)
        self.log_scale = nn.Parameter(log_scale, requires_grad=False)
        self.of_classifier = _last(self.classifier, config.classifier_blocks)
        self.of_counterfactual = _last(self.counterfactual, config.trained_blocks)

    def embed(self, texts: Sequence[str]) -> Tensor:
        """g of each text: the last layer's state at [CLS], [n, d]."""
        longest = self.classifier.model.config.max_position_embeddings
        states = []
        for start in range(0, len(texts), TOGETHER):
            some = texts[start : start + TOGETHER]
            batch = encode_prompts(self.classifier, some, max_length=longest)
            states.append(self.classifier.model(**batch.inputs()).last_hidden_state[:, 0])
        return torch.cat(states)

    def stand_in(self, text: str) -> StandIn:
        """h(z, .) for the edit text z."""
        return StandIn(self.counterfactual, text + SEPARATOR)

    def weights(self) -> dict[str, nn.Parameter]:
        """The trained weights by name, the scale among them."""
        named = {f"classifier.{name}": weight for name, weight in self.of_classifier.items()}
        named |= {f"counterfactual.{name}": w for name, w in self.of_counterfactual.items()}
        return named | {"log_scale": self.log_scale}

    @torch.no_grad()
    def take(self, weights: dict[str, Tensor]) -> None:
        """Take over trained weights; ValueError if they are another network's."""
        own = self.weights()
        if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in weights.items()}:
            raise ValueError("these weights belong to other networks")
        for name, weight in own.items():
            weight.copy_(weights[name])

    def size(self) -> int:
        """Number of trained weights."""
        return sum(weight.numel() for weight in self.weights().values())


def _last(backbone: Backbone, blocks: int) -> dict[str, nn.Parameter]:
    """The weights of the last so many blocks with the norm behind them; 0: of the whole model."""
    if not blocks:
        return dict(backbone.model.named_parameters())
    first = backbone.n_blocks() - blocks
    if first < 0:
        raise EditorError(f"{backbone.name} has {backbone.n_blocks()} blocks, not {blocks}")
    paths = [backbone.path("block", index) for index in range(first, backbone.n_blocks())]
    if "final_norm" in backbone.family.parts():
        paths.append(backbone.path("final_norm"))
    prefixes = tuple(f"{path}." for path in paths)
    return {n: w for n, w in backbone.model.named_parameters() if n.startswith(prefixes)}
