"""WilKE: ROME at the block where an edit changes least (Hu et al., 2024; elder 7).

For every candidate block ROME's whole update is made, but not applied; the edit goes where
||dW||_F / ||W||_F is smallest, W the weight in force. It costs as many ROME edits as there are
candidates, and the second moment of the keys at each of them.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch.linalg import matrix_norm

from lib.editors.rome import RankOne, RankOneEditor, RomeConfig


@dataclass(frozen=True)
class WilkeConfig(RomeConfig):
    """Defaults: the official ones for GPT2-XL, blocks 0 to 23 (GPT-J: 0 to 6), with the second
    moment; all else as ROME."""

    blocks: tuple[int, ...] = tuple(range(24))
    moment_adjustment: bool = True


class Wilke(RankOneEditor):
    """State: the weights that were edited, and how often each block was chosen."""

    name = "WilKE"
    config: WilkeConfig

    def choose(self, updates: Sequence[RankOne]) -> RankOne:
        """The update that is smallest against its weight; of equals the lowest block's."""
        return min(updates, key=self.share)

    def share(self, update: RankOne) -> float:
        """||dW||_F / ||W||_F of an update."""
        weight = self.modules[update.block].weight.detach()
        return float(update.right.norm() / matrix_norm(weight.double()))

    def counts(self) -> dict[str, float]:
        """The weights that changed, and the number of edits at each block ("block 5")."""
        times = Counter(self.chosen)
        return super().counts() | {f"block {block}": times[block] for block in sorted(times)}
