"""Classes of texts under a classifier, and edits that flip them."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from lib.backbones.backbone import Backbone
from lib.backbones.encoding import encode_prompts
from lib.data.records import Edit
from lib.errors import BackboneError

ROWS = 64  # texts in one pass


@torch.no_grad()
def predicted_classes(
    backbone: Backbone, texts: Sequence[str], max_length: int | None = None
) -> list[int]:
    """The likeliest class of each text under the weights in force; like lengths go together."""
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    found = [0] * len(texts)
    for start in range(0, len(order), ROWS):
        chosen = order[start : start + ROWS]
        batch = encode_prompts(backbone, [texts[i] for i in chosen], max_length=max_length)
        classes = backbone.model(**batch.inputs()).logits.argmax(dim=-1).tolist()
        for index, label in zip(chosen, classes, strict=True):
            found[index] = label
    return found


class Flips:
    """Turns edits against an unedited classifier of two classes; each text is classified once.

    Raises BackboneError for any other backbone.
    """

    def __init__(self, backbone: Backbone) -> None:
        if backbone.family.kind != "classifier" or backbone.model.config.num_labels != 2:
            raise BackboneError(
                f"{backbone.name} is no classifier of two classes, so its predictions cannot be "
                "flipped; set stream.flip_predictions to false"
            )
        self.backbone = backbone
        self._classes: dict[str, int] = {}

    def of(self, edits: Sequence[Edit]) -> list[Edit]:
        """The edits towards the class that is not predicted for their prompts, without the
        rephrases that are classified otherwise than the prompt (De Cao's filter, malmen 4)."""
        texts = {text for edit in edits for text in (edit.prompt, *edit.rephrases)}
        new = sorted(texts - self._classes.keys())
        self._classes |= zip(new, predicted_classes(self.backbone, new), strict=True)
        made = []
        for edit in edits:
            own = self._classes[edit.prompt]
            kept = tuple(text for text in edit.rephrases if self._classes[text] == own)
            made.append(replace(edit, target=str(1 - own), target_true="", rephrases=kept))
        return made
