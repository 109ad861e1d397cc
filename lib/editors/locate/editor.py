"""What ROME, MEMIT and COMEBA-HK share: requests, key statistics, values, keys, outputs.

Symbols as in the reference: edited blocks L_set, value block z = the last of them, d the residual
width, f the MLP's inner width, B requests, K [f, B] keys, Z [d, B] target outputs of block z.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from lib.backbones.backbone import Backbone
from lib.backbones.encoding import prompt_ids
from lib.backbones.passes.hooks import capture, first_tensor
from lib.backbones.passes.logits import precise
from lib.backbones.passes.prefix import FrozenPrefix
from lib.backbones.text_states import KeyText, second_moments
from lib.data.corpus import Corpus
from lib.data.records import Edit, Stream
from lib.editors.base import Editor, EditorConfig, EditReport
from lib.editors.locate import values
from lib.editors.locate.solve import KeyMemory, Solver
from lib.editors.locate.subjects import (
    Request,
    Rows,
    SubjectPasses,
    at_subject,
    contextual,
    head_length,
    sample_contexts,
)
from lib.editors.locate.values import (
    Found,
    Search,
    ValueCache,
    part_of,
    search_values,
    together,
    value_rows,
)
from lib.errors import EditorError
from lib.storage.cache import Cache


@dataclass(frozen=True)
class LocateConfig(EditorConfig):
    """Defaults: EasyEdit's for GPT2-XL. `n_layers` keeps the last so many of `blocks` (0: all).

    The value search is `value_*` (see `values.Search`); `contexts` are groups of context texts
    beside the bare prompt, each (tokens, how many); `moment_weight` is lambda; statistics are taken
    over `statistics_tokens` tokens of documents cut at `statistics_length` (0: the model's
    maximum), of at most `statistics_documents` documents (0: all of the corpus). `solver`: see
    `solve.KeyMemory`.
    """

    blocks: tuple[int, ...] = (13, 14, 15, 16, 17)
    n_layers: int = 0
    value_steps: int = 20
    value_lr: float = 0.5
    value_weight_decay: float = 0.5
    value_clamp: float = 0.75
    kl_factor: float = 0.0625
    contexts: tuple[tuple[int, int], ...] = ((10, 5),)
    moment_weight: float = 15000.0
    statistics_tokens: int = 100_000
    statistics_length: int = 0
    statistics_documents: int = 0
    solver: Solver = "auto"

    @property
    def search(self) -> Search:
        """The value search's hyper-parameters."""
        return Search(
            self.value_steps, self.value_lr, self.value_weight_decay, self.value_clamp,
            self.kl_factor,
        )  # fmt: skip

    @property
    def sample(self) -> KeyText:
        """How much text the key statistics see."""
        return KeyText(self.statistics_tokens, self.statistics_length, self.statistics_documents)


class LocateEditor(Editor):
    """The shared steps. Subclasses write weights; passes see whatever is in force."""

    kinds = frozenset({"causal"})
    needs = ("corpus", "values_cache")
    config: LocateConfig

    def __init__(
        self,
        backbone: Backbone,
        config: LocateConfig,
        *,
        corpus: Corpus | None = None,
        values_cache: Cache | None = None,
    ) -> None:
        super().__init__(backbone, config)
        if not config.blocks or list(config.blocks) != sorted(set(config.blocks)):
            raise EditorError(f"{self.name}: blocks {config.blocks} must be ascending, each once")
        if not 0 <= config.n_layers <= len(config.blocks):
            raise EditorError(
                f"{self.name}: n_layers {config.n_layers} of {len(config.blocks)} blocks"
            )
        self.blocks = config.blocks[-config.n_layers :]
        self.modules = {block: backbone.module("mlp_out", block) for block in self.blocks}
        self.prefix = FrozenPrefix(backbone, self.blocks[0])
        self.corpus, self.values_cache = corpus, values_cache
        self.contexts: tuple[str, ...] | None = None
        self.memory: dict[int, KeyMemory] = {}

    def _fit(self, stream: Stream) -> None:
        """Contexts and key statistics; both are made at the first edit otherwise."""
        self.prepare(memory=True)

    def prepare(self, *, memory: bool = False) -> None:
        """What must be read off the unedited backbone, once: contexts, and with `memory`
        C = lambda M of each block."""
        if self.contexts is None:
            if self.n_batches:
                raise EditorError(f"{self.name}: contexts were lost while edits are in force")
            self.contexts = sample_contexts(self.backbone, self.config.contexts, self.config.seed)
        if memory and not self.memory:
            weight, solver = self.config.moment_weight, self.config.solver
            self.memory = {
                block: KeyMemory(moment, weight, solver) for block, moment in self.moments().items()
            }

    def moments(self) -> dict[int, Tensor]:
        """E[k k^T] [f, f] (float32) of each edited block over the corpus."""
        if self.corpus is None:
            raise EditorError(
                f"{self.name} needs text for its key statistics; pass corpus= (lib.data.corpus)"
            )
        found = second_moments(self.backbone, self.blocks, self.corpus, self.config.sample)
        return {block: moment.matrix for block, moment in found.items()}

    def tokens_before(self) -> int:
        """Tokens of the longest context."""
        self.prepare()
        head = head_length(self.backbone)
        lengths = (len(prompt_ids(self.backbone, context)) - head for context in self.contexts)
        return max(lengths, default=0)

    def requests(self, batch: Sequence[Edit]) -> list[Request]:
        """The edits as requests; one without a subject is an error."""
        return [Request.of(edit, self.name) for edit in batch]

    def _undoing(self) -> Callable[[], None]:
        """Nothing: `_edit` puts back what it changed, without a copy of all weights before it."""
        return lambda: None

    # -- passes ------------------------------------------------------------------------------

    @contextlib.contextmanager
    def counting(self, rows: Rows, widths: Tensor) -> Iterator[None]:
        """Passes inside count `widths` [R] columns of each row in scope statistics."""
        yield

    def find_values(
        self,
        requests: Sequence[Request],
        initial_part: str = "block",
        *,
        block: int | None = None,
        unedited: bool | None = None,
    ) -> Found:
        """Z: target outputs [B, d] of the value block (None: the last of the edited ones), searched
        under the weights in force.

        Values on the unedited backbone do not depend on what is edited later: with a
        `values_cache` they are searched once for all runs that search the same requests together
        (which others are beside one moves its last digits). The seconds of that search count.
        """
        unedited = self.n_batches == 0 if unedited is None else unedited
        block = self.blocks[-1] if block is None else block
        count, stored = self._at_once(requests, block), []
        for start in range(0, len(requests), count):
            some = requests[start : start + count]
            kept = unedited and self.values_cache is not None
            cache = self._cache(some, initial_part, block) if kept else None
            known = [cache.get(request) if cache else None for request in some]
            if any(one is None for one in known):
                found = self._search(some, initial_part, block)
                known = [part_of(found, row) for row in range(len(some))]
                for request, one in zip(some, known, strict=True):
                    if cache:
                        cache.put(request, one)
            stored += known
        return together(stored, self.backbone.device)

    def _at_once(self, requests: Sequence[Request], block: int) -> int:
        wanted = value_rows(self.backbone, requests, ("", *self.contexts))
        return values.requests_at_once(self.backbone, block, wanted)

    def _search(self, requests: Sequence[Request], initial_part: str, block: int) -> Found:
        wanted = value_rows(self.backbone, requests, ("", *self.contexts))
        rows = wanted.rows
        # The official routine pads each request's rows among themselves.
        widest = torch.zeros(len(requests), dtype=rows.lengths.dtype, device=rows.lengths.device)
        widest = widest.scatter_reduce(0, rows.owner, rows.lengths, "amax")
        part = self.backbone.module(initial_part, block)
        with self.counting(rows, widest[rows.owner]), capture(part) as seen:
            state = FrozenPrefix(self.backbone, block + 1).record(rows.batch)
        each = len(rows) // len(requests)
        alone = slice(0, None, each)  # a request's first row is its prompt without context
        initial = precise(at_subject(first_tensor(seen.output), rows)[alone])
        return search_values(self.backbone, block, wanted, state, initial, self.config.search)

    def _cache(self, requests: Sequence[Request], initial_part: str, block: int) -> ValueCache:
        identity = [
            self.backbone.arithmetic, list(self.contexts), asdict(self.config.search), block,
            initial_part, [asdict(request) for request in requests],
        ]  # fmt: skip
        return ValueCache(self.values_cache, identity)

    def passes(self, requests: Sequence[Request], contexts: Sequence[str]) -> SubjectPasses:
        """Passes over each request's prompt behind each context (request-major)."""
        strings = [parts for request in requests for parts in contextual(request, contexts)]
        return SubjectPasses(self.backbone, strings, self.counting)

    def mean_keys(self, passes: SubjectPasses, block: int, count: int) -> Tensor:
        """K [f, B] float64: inputs of the block's output matrix at the subject's last token.

        Half from the prompt alone, half from the mean over context texts (ref 2.6).
        """
        each = passes.read("mlp_out", block, of_input=True).unflatten(0, (count, -1))
        if each.shape[1] == 1:
            return each[:, 0].T
        return (each[:, 0] / 2 + each[:, 1:].mean(dim=1) / 2).T

    def spread(
        self, requests: Sequence[Request], target: Tensor, write: Callable[[int, Tensor], None]
    ) -> dict[int, Tensor]:
        """Bring the value block's output to `target` [B, d] by one update per edited block.

        From the lowest block up: what is still missing at the value block, divided by the number
        of blocks left, becomes a least-squares update [d, f] that `write(block, update)` puts in
        force (ref 2.4, phase 2). Returns the keys [f, B] of each block.
        """
        written = self.passes(requests, ("", *self.contexts))
        bare = self.passes(requests, ("",))
        absorbed = {}
        for i, block in enumerate(self.blocks):
            for passes in (written, bare):
                passes.settle(block)
            keys = self.mean_keys(written, block, len(requests))
            missing = (target - bare.read("block", self.blocks[-1])).T
            solved = self.memory[block].solve(keys)
            write(block, missing / (len(self.blocks) - i) @ solved.T)
            absorbed[block] = keys
        return absorbed

    def report(self, found: Found) -> EditReport:
        """The report of a batch from its value search."""
        solved = [loss < self.config.search.stop_loss for loss in found.last]
        searched = {
            "solved": sum(solved) / len(solved),
            "search_steps": sum(found.updates) / len(found.updates),
        }
        means = [sum(losses) / len(losses) for losses in (found.first, found.last)]
        return EditReport(found.seconds, *means, self.counts() | searched)

    # -- state that all of them keep -----------------------------------------------------------

    def extra(self) -> dict[str, Any]:
        """The context texts."""
        return {"contexts": self.contexts}

    def restore_contexts(self, extra: dict[str, Any]) -> None:
        """Take over saved context texts."""
        self.contexts = None if extra["contexts"] is None else tuple(extra["contexts"])
