"""Which claims a classifier is taught upstream, apart from all that edits are scored on."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from lib.data.records import Dataset, Edit, Probe
from lib.errors import RecordError

Claim = tuple[str, str]  # text, class number


@dataclass(frozen=True)
class Lessons:
    """Claims to learn, and claims to score what was learned: plain ones and edited ones."""

    learned: tuple[Claim, ...]
    held_out: dict[str, tuple[Claim, ...]]

    def apart_from(self, dataset: Dataset) -> Dataset:
        """The dataset without the learned and the plain held-out claims."""
        used = {text for text, _ in (*self.learned, *self.held_out["claims"])}

        def is_apart(edit: Edit) -> bool:
            return not used & {edit.prompt, *(probe.prompt for probe in edit.locality)}

        return replace(
            dataset,
            edits=tuple(filter(is_apart, dataset.edits)),
            upstream=tuple(probe for probe in dataset.upstream if probe.prompt not in used),
        )


def lessons(
    source: Dataset, *, claims: int | None, held_out: int, taught: int | None = None
) -> Lessons:
    """The last `claims` of the upstream pool (None: half of it) with `taught` claims of the edited
    kind about other subjects, where the data has any (None: half as many); and as held-out claims
    the `held_out` before them and the gold classes of the first edits.

    Raises RecordError if the pool holds no more than these.
    """
    pool = _claims(source.upstream)
    count = len(pool) // 2 if claims is None else claims
    if len(pool) <= count + held_out:
        raise RecordError(
            f"{source.name} brings {len(pool)} upstream claims, and {count} to learn with "
            f"{held_out} held out leave none to measure locality on; lower tune.claims"
        )
    last = len(pool) - count
    edited = [(edit.prompt, edit.target_true) for edit in source.edits if edit.target_true]
    same_kind = _claims(source.taught)[: count // 2 if taught is None else taught]
    return Lessons(
        learned=(*pool[last:], *same_kind),
        held_out={"claims": pool[last - held_out : last], "edits": tuple(edited[:held_out])},
    )


def _claims(probes: Iterable[Probe]) -> tuple[Claim, ...]:
    return tuple((probe.prompt, probe.target) for probe in probes)
