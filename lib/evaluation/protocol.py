"""The protocols: edit batch after batch, score each prompt at named moments.

Consecutive rounds: `before` any edit, `own` (right after the batch that holds the edit),
`checkpoint` (everything but general ability, if that is not asked for, after the batches that the
protocol names), `end` (everything, after the last batch).
Single rounds: every batch starts from the backbone; `before`, and `own` for all rows that belong to
the batch, rephrases and locality prompts among them.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from lib.data.records import SUBSETS, Stream
from lib.editors.base import Editor
from lib.errors import UsageError
from lib.evaluation.evaluator import Evaluator, Protocol, ScoredRow


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
    write_record: Callable[[ScoredRow], None],
    write_step: Callable[[ScoredRow], None],
    after_batch: Callable[[int], None],
    write_observation: Callable[[ScoredRow], None] = lambda row: None,
    start_batch: int = 0,
    clock: Clock | None = None,
) -> Clock:
    """Edit the stream from batch `start_batch` on and write records and steps as they come.

    `after_batch(n)` is called when n batches are done and written: the moment to checkpoint.
    `n_edits` in records and steps counts the edits that the model holds at that moment: in single
    rounds those of one batch. Raises UsageError for single rounds of a stream without owners.
    """
    clock = clock or Clock()
    single = protocol.rounds == "single"
    if single and not stream.owners:
        raise UsageError(
            "single rounds score the rows that belong to a batch, and this stream has only shared "
            "pools; give the setting a stream of kind records, or consecutive rounds"
        )

    def write(
        subset: str,
        moment: str,
        n_edits: int,
        only: int | None = None,
        applied: int | None = None,
    ) -> None:
        began = time.perf_counter()
        for record in evaluator.records(subset, moment, n_edits, only, applied):
            write_record(record)
        clock.evaluate += time.perf_counter() - began

    # A run of single rounds resumes with a new editor, one of consecutive rounds with a loaded one.
    if start_batch == 0 or protocol.rounds == "single":
        began = time.perf_counter()
        editor.fit(stream)
        clock.fit += time.perf_counter() - began
    if start_batch == 0:
        for subset in SUBSETS:
            write(subset, "before", 0)
    between = SUBSETS if protocol.general_between else SUBSETS[: SUBSETS.index("general")]
    batches = list(stream.batches())
    for number in range(start_batch, len(batches)):
        began = time.perf_counter()
        if single:
            editor.rollback()
            evaluator.forget()
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
        for subset in between if single else ("edits",):
            write(subset, "own", editor.n_edits, only=number)
        last = number + 1 == len(batches)
        if not single and (last or protocol.checks(number + 1)):
            # Rows that have owners wait for their edit; those of shared pools are always due.
            applied = editor.n_edits if stream.owners else None
            for subset in SUBSETS if last else between:
                write(subset, "end" if last else "checkpoint", editor.n_edits, applied=applied)
        after_batch(number + 1)
    if protocol.observe:
        began = time.perf_counter()
        for row in editor.observe(stream, evaluator.keys):
            write_observation(row)
        clock.evaluate += time.perf_counter() - began
    return clock
