"""Rows made ready for scoring, kept between runs: encoded, with their frozen prefix run once."""

from collections.abc import Iterable
from typing import Any

from lib.backbones.passes import decoding
from lib.backbones.passes.decoding import PromptBatch
from lib.backbones.passes.prefix import FrozenPrefix
from lib.editors.base import Editor

PASSES_BYTES = 4 * 2**30
"""Frozen-prefix states are kept up to this size; the rows beyond it run their prefix each time."""


class Prepared:
    """Prepared batches of rows for one editor, in a mapping that runs on one backbone share.

    A batch whose prefix was run for an editor of lower layers goes on from there.
    """

    def __init__(self, editor: Editor, passes: dict[Any, PromptBatch], *, whole: bool) -> None:
        self.editor, self.passes, self.whole = editor, passes, whole
        self._wanted: set[Any] = set()

    def of(self, rows: tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]) -> PromptBatch:
        """The batch of rows with these prompts, targets and competing answers."""
        editor, backbone = self.editor, self.editor.backbone
        prompts, targets, others = rows
        length, first = editor.config.max_length, editor.prefix.first
        way = (length, editor.config.full_width, self.whole)

        def key(blocks: int) -> Any:
            return (backbone.content, blocks, way, prompts, targets, others)

        known = self.passes.get(key(first))
        self._wanted.add(key(first))
        if known is not None and set(editor.watch) <= set(known.state.watched):
            return known
        watch = tuple(dict.fromkeys((*editor.watch, *(known.state.watched if known else ()))))
        made = decoding.prepare(
            backbone,
            editor.prefix,
            prompts,
            targets,
            length,
            watch,
            others=others,
            whole=self.whole,
            full_width=editor.config.full_width,
            below=self._below((key(blocks) for blocks in range(first - 1, 0, -1)), watch),
        )
        self._keep(key(first), made)
        return made

    def _below(
        self, keys: Iterable[Any], watch: tuple[str, ...]
    ) -> tuple[FrozenPrefix, PromptBatch] | None:
        """The highest lower prefix that was run on the same rows and misses nothing of `watch`."""
        stack = self.editor.prefix.stack
        for key in () if self.whole else keys:
            known = self.passes.get(key)
            if known is None:
                continue
            lower = FrozenPrefix(self.editor.backbone, key[1], stack)
            if not any(lower.holds(path) for path in set(watch) - set(known.state.watched)):
                return lower, known
        return None

    def _keep(self, key: Any, made: PromptBatch) -> None:
        """Keep a batch if there is room; those of earlier runs that this one did not ask for go."""
        stale = [other for other in self.passes if other not in self._wanted]
        held = sum(batch.bytes for batch in self.passes.values()) + made.bytes
        while held > PASSES_BYTES and stale:
            held -= self.passes.pop(stale.pop(0)).bytes
        if held <= PASSES_BYTES:
            self.passes[key] = made
