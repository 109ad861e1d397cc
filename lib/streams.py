"""From a dataset to the ordered stream that a paper's protocol edits."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch

from lib.data.records import Dataset, Edit, Probe, Stream
from lib.errors import RecordError, UsageError


def pool(dataset: Dataset, kind: str, count: int) -> tuple[Probe, ...]:
    """The first `count` locality probes of a kind ("upstream", or one that the edits carry)."""
    found: Iterable[Probe] = (
        dataset.upstream
        if kind == "upstream"
        else (probe for edit in dataset.edits for probe in edit.locality if probe.kind == kind)
    )
    kept, seen = [], set()
    for probe in found:
        if len(kept) == count:
            break
        if probe.prompt not in seen:
            seen.add(probe.prompt)
            kept.append(probe)
    return tuple(kept)


def balanced_stream(
    dataset: Dataset,
    *,
    n_edits: int,
    batch_size: int,
    seed: int,
    max_rephrases: int = 16,
    n_upstream: int = 1000,
    n_near: int = 0,
    template: str = "{}",
) -> Stream:
    """MELO's zsRE stream (melo 4, official code).

    In file order, records without a rephrase or with an answer that was already used are skipped.
    The question and the first half of its rephrases are edits, the other half is held out; the
    edits are the first `n_edits` of them in random order. The holdout here is the *intended* one:
    rephrases of edited facts that no edit uses (the released code scored the edits themselves).
    `template` wraps every prompt, edits and probes alike ("Question: {}\\nAnswer:").
    """
    inner: list[Edit] = []
    outer: list[list[Edit]] = []
    answers: set[str] = set()
    for record in dataset.edits:
        if len(inner) >= n_edits:
            break
        if not record.rephrases or record.target in answers:
            continue
        answers.add(record.target)
        others = [text for text in dict.fromkeys(record.rephrases) if text != record.prompt]
        kept = others[:max_rephrases]
        half = len(kept) // 2
        inner += [_wording(record, i, text) for i, text in enumerate((record.prompt, *kept[:half]))]
        outer.append([_wording(record, half + 1 + i, text) for i, text in enumerate(kept[half:])])
    if len(inner) < n_edits:
        raise RecordError(
            f"{dataset.name} gives only {len(inner)} edits with distinct answers and rephrases, "
            f"{n_edits} were asked for; lower n_edits or use a larger file"
        )
    order = torch.randperm(n_edits, generator=torch.Generator().manual_seed(seed)).tolist()
    edits = tuple(inner[index] for index in order)
    edited = {edit.relation for edit in edits}
    taken = {edit.prompt for edit in edits}
    holdout = tuple(
        edit
        for group in outer
        for edit in group
        if edit.relation in edited and edit.prompt not in taken
    )
    if template.count("{}") != 1:
        raise UsageError(f"a prompt template needs exactly one {{}}: {template!r}")

    def wrapped(items: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(replace(item, prompt=template.format(item.prompt)) for item in items)

    return Stream(
        name=dataset.name,
        edits=wrapped(edits),
        batch_size=batch_size,
        holdout=wrapped(holdout),
        upstream=wrapped(pool(dataset, "upstream", n_upstream)),
        near=wrapped(pool(dataset, "near", n_near)),
        notes=(f"{len(edited)} facts, {len(answers)} distinct answers",),
    )


def _wording(record: Edit, number: int, prompt: str) -> Edit:
    """One wording of a fact as an edit of its own; `relation` then names the fact."""
    return replace(
        record,
        identity=f"{record.identity}#{number}",
        prompt=prompt,
        subject=record.subject if record.subject in prompt else "",
        rephrases=(),
        locality=(),
        relation=record.identity,
    )
