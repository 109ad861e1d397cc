"""The prompts of a stream as rows to score, cut into the fixed batches that they are scored in."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lib.data.records import Edit, Probe, Stream


@dataclass(frozen=True)
class Row:
    """One prompt to score and where it belongs.

    `edit_index` is the edit that the row belongs to (-1: a row of a shared pool), `other` the
    answer that competes with the target ("" if none): for a wording of an edit the true object,
    for a neighbour the new object of the edit it belongs to.
    """

    record: str
    prompt: str
    target: str
    edit_index: int
    fact: str
    other: str = ""
    subject: str = ""


@dataclass(frozen=True)
class RowBatch:
    """Rows that are scored together. `number` is the batch of edits that they belong to; for rows
    of a shared pool it only counts."""

    number: int
    rows: tuple[Row, ...]


def row_batches(
    stream: Stream, subset: str, size: int, *, by_edits: bool = True, rivals: bool = True
) -> list[RowBatch]:
    """The rows of a subset, at most `size` in a batch.

    Where rows have owners, a batch holds rows of one batch of edits only, and the rows of a large
    batch of edits are cut into several; not `by_edits`: rows fill their batches. Without owners,
    edits stay in their batches whatever `size` is. "general" rows never have owners. Without
    `rivals` no row has a competing answer.
    """
    items: Sequence[Edit | Probe] = getattr(stream, subset)
    rows = [_row(stream, subset, index, item) for index, item in enumerate(items)]
    rows = rows if rivals else [replace(row, other="") for row in rows]
    if not stream.owners or subset == "general":
        step = stream.batch_size if subset == "edits" else size
        starts = range(0, len(rows), step)
        return [RowBatch(i, tuple(rows[at : at + step])) for i, at in enumerate(starts)]
    if not by_edits:
        starts = range(0, len(rows), size)
        return [RowBatch(i, tuple(rows[at : at + size])) for i, at in enumerate(starts)]
    groups: dict[int, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.edit_index // stream.batch_size, []).append(row)
    return [
        RowBatch(number, tuple(group[at : at + size]))
        for number, group in sorted(groups.items())
        for at in range(0, len(group), size)
    ]


def columns(rows: Sequence[Row]) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Prompts, targets and competing answers of some rows."""
    prompts, targets = tuple(row.prompt for row in rows), tuple(row.target for row in rows)
    return prompts, targets, tuple(row.other for row in rows)


def _row(stream: Stream, subset: str, index: int, item: Edit | Probe) -> Row:
    owner = stream.owner(subset, index)
    if isinstance(item, Edit):
        fact, other = item.relation, item.target_true
    else:
        neighbour = item.kind == "neighbour" and owner >= 0
        fact, other = item.identity, stream.edits[owner].target if neighbour else ""
    other = "" if other == item.target else other
    subject = item.subject if isinstance(item, Edit) else ""
    return Row(item.identity, item.prompt, item.target, owner, fact, other, subject)
