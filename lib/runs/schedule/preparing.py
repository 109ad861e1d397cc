"""Does what several runs share before any of them begins: materials, statistics, networks."""

from lib.editors import build, needs_of
from lib.runs import machine
from lib.runs.plan import Run
from lib.runs.resources import Resources
from lib.runs.store import Store
from lib.storage.cache import Cache


def prepare(run: Run, store: Store, resources: Resources, *, fit: bool) -> None:
    """Fill the caches with what the run takes: its backbone (converted, tuned) and what that knows;
    with `fit` also what its editor learns or reads off before the first edit. Nothing is edited."""
    spec = run.spec
    with machine.deterministic(run.seed, spec.get("threads")):
        materials = resources.materials(spec, needs_of(spec["editor"]) if fit else ())
        if not fit:
            return
        store.tell(run, materials.contents)
        editor = build(
            spec["editor"],
            materials.backbone,
            spec["config"],
            blocks_cache=store.cache,
            values_cache=store.cache,
            networks_cache=Cache.user(),
            kept=materials.kept,
            corpus=materials.corpus,
            training=materials.learned,
        )
        try:
            editor.fit(materials.stream)
        finally:
            editor.close()
