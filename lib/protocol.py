"""The sequential protocol: edit batch after batch, score each prompt at named moments.

Moments: `before` any edit, `own` (right after the batch that holds the edit), `checkpoint`
(everything, every so many batches), `end` (everything, after the last batch).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from lib.data.records import Stream
from lib.editors.base import Editor
from lib.evaluation import SUBSETS, Evaluator, Protocol, Record, Scored

__all__ = ["SUBSETS", "Clock", "Evaluator", "Protocol", "Record", "Scored", "run_sequence"]


@dataclass
class Clock:
    """Seconds spent, by activity; carried over when a run is resumed."""

    fit: float = 0.0
    edit: float = 0.0
    evaluate: float = 0.0


def run_sequence(
    editor: Editor,
    stream: Stream,
    protocol: Protocol,
    evaluator: Evaluator,
    *,
    write_record: Callable[[Record], None],
    write_step: Callable[[Record], None],
    after_batch: Callable[[int], None],
    start_batch: int = 0,
    clock: Clock | None = None,
) -> Clock:
    """Edit the stream from batch `start_batch` on and write records and steps as they come.

    `after_batch(n)` is called when n batches are done and written: the moment to checkpoint.
    """
    clock = clock or Clock()

    def write(subset: str, moment: str, n_edits: int, only: int | None = None) -> None:
        began = time.perf_counter()
        for record in evaluator.records(subset, moment, n_edits, only):
            write_record(record)
        clock.evaluate += time.perf_counter() - began

    if start_batch == 0:
        began = time.perf_counter()
        editor.fit(stream)
        clock.fit += time.perf_counter() - began
        for subset in SUBSETS:
            write(subset, "before", 0)
    batches = list(stream.batches())
    for number in range(start_batch, len(batches)):
        began = time.perf_counter()
        report = editor.edit(batches[number])
        clock.edit += time.perf_counter() - began
        write_step(
            {
                "batch": number,
                "n_edits": editor.n_edits,
                "seconds_edit": report.seconds,
                "loss_first": report.loss_first,
                "loss_last": report.loss_last,
            }
            | report.counts
        )
        write("edits", "own", editor.n_edits, only=number)
        last = number + 1 == len(batches)
        every = protocol.checkpoint_every
        if last or (every and (number + 1) % every == 0):
            for subset in SUBSETS:
                write(subset, "end" if last else "checkpoint", editor.n_edits)
        after_batch(number + 1)
    return clock
