"""What a classifier is taught upstream: claims, apart from all that edits are scored on, or
documents, on which locality is measured."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from lib.data.records import Dataset, Edit, Probe
from lib.errors import RecordError

Text = tuple[str, str]  # text, class number


@dataclass(frozen=True)
class Lessons:
    """Texts to learn, and texts to score what was learned: of the same kind ("claims" or
    "documents") and of the edited one ("edits")."""

    learned: tuple[Text, ...]
    held_out: dict[str, tuple[Text, ...]]
    kind: str = "claims"

    def apart_from(self, dataset: Dataset) -> Dataset:
        """The dataset without the learned and the plain held-out claims. Of documents, `upstream`
        becomes the learned ones (melo 4: locality on the train split), `near` those held out."""
        if self.kind == "documents":
            return self._told_apart(dataset)
        used = {text for text, _ in (*self.learned, *self.held_out["claims"])}

        def is_apart(edit: Edit) -> bool:
            return not used & {edit.prompt, *(probe.prompt for probe in edit.locality)}

        return replace(
            dataset,
            edits=tuple(filter(is_apart, dataset.edits)),
            upstream=tuple(probe for probe in dataset.upstream if probe.prompt not in used),
        )

    def _told_apart(self, dataset: Dataset) -> Dataset:
        first, last = len(self.learned), len(self.learned) + len(self.held_out["documents"])
        held_out = tuple(replace(probe, kind="near") for probe in dataset.upstream[first:last])
        return replace(dataset, upstream=dataset.upstream[:first], near=held_out)


def lessons_of(source: Dataset, tune: Mapping[str, Any]) -> Lessons:
    """The lessons that a setting's `tune` describes."""
    if "documents" in tune:
        return document_lessons(source, documents=tune["documents"], held_out=tune["held_out"])
    names = ("claims", "held_out", "taught")
    return lessons(source, **{name: tune[name] for name in names if name in tune})


def lessons(
    source: Dataset, *, claims: int | None, held_out: int, taught: int | None = None
) -> Lessons:
    """The last `claims` of the upstream pool (None: half of it) with `taught` claims of the edited
    kind about other subjects, where the data has any (None: half as many); and as held-out claims
    the `held_out` before them and the gold classes of the first edits.

    Raises RecordError if the pool holds no more than these.
    """
    pool = _texts(source.upstream)
    count = len(pool) // 2 if claims is None else claims
    if len(pool) <= count + held_out:
        raise RecordError(
            f"{source.name} brings {len(pool)} upstream claims, and {count} to learn with "
            f"{held_out} held out leave none to measure locality on; lower tune.claims"
        )
    last = len(pool) - count
    edited = [(edit.prompt, edit.target_true) for edit in source.edits if edit.target_true]
    same_kind = _texts(source.taught)[: count // 2 if taught is None else taught]
    return Lessons(
        learned=(*pool[last:], *same_kind),
        held_out={"claims": pool[last - held_out : last], "edits": tuple(edited[:held_out])},
    )


def document_lessons(source: Dataset, *, documents: int | None, held_out: int) -> Lessons:
    """The first `documents` of the upstream pool, at most all but `held_out` of it (None: these);
    held out are the next `held_out` documents, and the first edits with their classes.

    Raises RecordError if the pool holds no more than `held_out`.
    """
    pool = _texts(source.upstream)
    most = len(pool) - held_out
    if most < 1:
        raise RecordError(
            f"{source.name} brings {len(pool)} upstream documents, and {held_out} held out leave "
            "none to learn; lower tune.held_out"
        )
    count = most if documents is None else min(documents, most)
    edited = tuple((edit.prompt, edit.target) for edit in source.edits[:held_out])
    return Lessons(
        learned=pool[:count],
        held_out={"documents": pool[count : count + held_out], "edits": edited},
        kind="documents",
    )


def _texts(probes: Iterable[Probe]) -> tuple[Text, ...]:
    return tuple((probe.prompt, probe.target) for probe in probes)
