"""Does what several runs share before any of them begins: materials, statistics, networks."""

from lib.editors import needs_of
from lib.runs import machine
from lib.runs.execute import built
from lib.runs.plan import Run
from lib.runs.resources import Resources
from lib.runs.store import Store


def prepare(run: Run, store: Store, resources: Resources, *, fit: bool) -> None:
    """Fill the caches with what the run takes: its backbone (converted, tuned) and what that knows;
    with `fit` also what its editor learns or reads off before the first edit. Nothing is edited."""
    spec = run.spec
    with machine.deterministic(run.seed, spec.get("threads")):
        materials = resources.materials(spec, needs_of(spec["editor"]) if fit else ())
        if not fit:
            return
        store.tell(run, materials.contents)
        editor = built(spec, materials, store)
        try:
            editor.fit(materials.stream)
        finally:
            editor.close()
