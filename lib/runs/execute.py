"""Does one run: loads what it needs, resumes or starts, edits and scores, fills the store."""

import json
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lib.backbones.backbone import Backbone
from lib.data.records import Stream
from lib.data.training import TrainingFacts
from lib.editors import build, needs_of
from lib.editors.base import Editor
from lib.errors import StudyError, TakenError
from lib.evaluation import timing
from lib.evaluation.evaluator import Evaluator, Protocol
from lib.evaluation.general.ability import GeneralTasks
from lib.evaluation.protocol import Clock, run_sequence
from lib.evaluation.scoring import Scored, needs_whole_passes
from lib.runs import machine
from lib.runs.plan import Run
from lib.runs.progress import Progress
from lib.runs.resources import Materials, Resources
from lib.runs.store import Store, Work
from lib.storage import fingerprints
from lib.storage.cache import Cache

INFERENCE_PROMPTS = 8
TRAINING_EXAMPLES = 2  # facts of the training that the manifest shows


def execute(
    run: Run, store: Store, resources: Resources, progress: Progress, *, wait: bool = True
) -> bool:
    """Make sure that the run is finished; True if it is, False if it failed (noted in the store).

    Its materials are made first: they give the run its identity (`Store.told`). Another process
    working on the same run is waited for; if `wait` is off, TakenError is raised instead. No
    failure leaves this function as an exception, so that the other runs of a plan go on; an
    interrupt by the user does.
    """
    began, spec = time.monotonic(), run.spec
    try:
        with machine.PeakMemory(spec["device"]) as memory:
            with machine.deterministic(run.seed, spec.get("threads")):
                materials = resources.materials(spec, needs_of(spec["editor"]))
            run = store.tell(run, materials.contents)
            with store.lock(run, wait=wait), machine.deterministic(run.seed, spec.get("threads")):
                if store.finished(run) is None:
                    seconds = resources.checkpoint_seconds
                    _execute(run, materials, store, progress, memory, seconds)
    except TakenError:
        raise
    except Exception as error:
        resources.forget()
        told = str(error) if isinstance(error, StudyError) else traceback.format_exc()
        try:
            store.fail(run, {"title": run.title, "spec": spec}, told)
        except StudyError as full:
            print(f"{run.title}: its failure could not be noted ({full})", file=sys.stderr)
        progress.start(run.title, 0, 0)
        progress.finish(f"failed after {time.monotonic() - began:.0f} s: {str(error)[:300]}")
        return False
    return True


def built(spec: dict[str, Any], materials: Materials, store: Store) -> Editor:
    """The editor of a run on its backbone, with the caches and texts that it declares."""
    return build(
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


def _execute(
    run: Run,
    materials: Materials,
    store: Store,
    progress: Progress,
    memory: machine.PeakMemory,
    checkpoint_seconds: float,
) -> None:
    spec, backbone, stream = run.spec, materials.backbone, materials.stream
    protocol = Protocol(**spec["protocol"])
    base_seconds = _inference_seconds(backbone, stream, protocol, spec)
    editor = built(spec, materials, store)
    work = store.work(run)
    try:
        identity = _before_identity(editor, stream, protocol)
        before = _read_before(store.cache.read("before", identity))
        evaluator = Evaluator(editor, stream, protocol, before=dict(before), kept=materials.kept)
        evaluator.score_unedited()
        if not before:
            store.cache.write("before", identity, _written_before(evaluator.before))
        progress.start(run.title, len(stream.edits), 0)
        general = GeneralTasks(
            editor,
            protocol,
            data_dir=materials.data_dir,
            identity=spec.get("general", {}),
            cache=store.cache,
        )
        if work.position["batches"] == 0:
            _observe(work, general.rows("before"))
        clock = _sequence(work, editor, stream, protocol, evaluator, progress, checkpoint_seconds)
        _observe(work, general.rows("end"))
        manifest = {
            "title": run.title,
            "spec": spec,
            "contents": run.contents,
            "seed": run.seed,
            "dataset": _describe_data(materials),
            "training": _describe_training(materials.learned),
            "backbone": {
                "name": backbone.name,
                "content": backbone.content,
                "provenance": backbone.provenance,
                "substitution": backbone.substitution,
                "dtype": str(backbone.dtype),
                **run.replaced,
            },
            "seconds": asdict(clock),
            "peak_memory_bytes": memory.bytes,
            **machine.provenance(spec["device"]),
        }
        if base_seconds is not None:
            manifest["inference"] = {
                "base_seconds": base_seconds,
                "edited_seconds": _inference_seconds(backbone, stream, protocol, spec),
                "repeats": protocol.inference_repeats,
            }
        store.finish(run, work, manifest, _save(editor, protocol))
    finally:
        editor.close()
        work.close()
    progress.finish("done")


def _save(editor: Editor, protocol: Protocol) -> Callable[[Path], None]:
    """How the editor's state is kept. After single rounds it holds the last batch alone, which
    nobody can use; a resumed run starts its next batch from the backbone anyway."""
    if protocol.rounds == "single":
        return lambda path: None
    return editor.save


def _inference_seconds(
    backbone: Backbone, stream: Stream, protocol: Protocol, spec: dict[str, Any]
) -> float | None:
    """Seconds of a pass over the first edit prompts as the model is now, if asked for."""
    if not protocol.inference_repeats:
        return None
    return timing.forward_seconds(
        backbone,
        [edit.prompt for edit in stream.edits[:INFERENCE_PROMPTS]],
        repeats=protocol.inference_repeats,
        max_length=spec["config"].get("max_length"),
    )


def _describe_data(materials: Materials) -> dict[str, Any]:
    """What the manifest says about the data; `known`: how many facts the backbone was asked. What
    was malformed or left out is that of all files read, of texts and facts to learn too."""
    dataset, stream, known = materials.dataset, materials.stream, materials.known
    read = [part for part in (dataset, stream, materials.corpus, materials.learned) if part]
    skipped = dict.fromkeys(bad for part in read for bad in part.skipped)
    facts = [part for part in (dataset, materials.learned) if part]
    left_out = dict.fromkeys(told for part in facts for told in part.left_out)
    return {
        "name": dataset.name,
        "content": stream.content,
        "sources": dataset.sources,
        "substitution": dataset.substitution,
        "skipped": [asdict(bad) for bad in skipped],
        **({"left_out": list(left_out)} if left_out else {}),
        "known": {"asked": len(known.answers), "content": known.content} if known else None,
        "notes": stream.notes,
        "counts": {
            "edits": len(stream.edits),
            "holdout": len(stream.holdout),
            "upstream": len(stream.upstream),
            "near": len(stream.near),
            **({"general": len(stream.general)} if stream.general else {}),
            **({"prompts with two answers": stream.conflicting} if stream.conflicting else {}),
            "facts": len({edit.relation for edit in stream.edits}),
            "answers": len({edit.target for edit in stream.edits}),
        },
    }


def _describe_training(facts: TrainingFacts | None) -> dict[str, Any] | None:
    """What the manifest says about the facts that the editor was trained on."""
    if facts is None:
        return None
    return {
        "name": facts.name,
        "content": facts.content,
        "sources": facts.sources,
        "substitution": facts.substitution,
        "train": len(facts.train),
        "valid": len(facts.valid),
        "examples": [
            {
                "prompt": fact.prompt,
                "target": fact.target,
                "rephrase": fact.rephrases[0],
                "unrelated": fact.locality[0].prompt,
                "unrelated_target": fact.locality[0].target,
            }
            for fact in facts.train[:TRAINING_EXAMPLES]
        ],
    }


def _sequence(
    work: Work,
    editor: Editor,
    stream: Stream,
    protocol: Protocol,
    evaluator: Evaluator,
    progress: Progress,
    checkpoint_seconds: float,
) -> Clock:
    start = work.position["batches"]
    clock = Clock(**work.position["clock"])

    def advance(batches: int) -> None:
        progress.advance(min(batches * stream.batch_size, len(stream.edits)))

    if start and protocol.rounds == "consecutive":
        editor.load(work.saved_editor)
        advance(start)
    saved = time.monotonic()

    def after_batch(done: int) -> None:
        nonlocal saved
        advance(done)
        if time.monotonic() - saved >= checkpoint_seconds:
            work.checkpoint(done, asdict(clock), _save(editor, protocol))
            saved = time.monotonic()

    return run_sequence(
        editor,
        stream,
        protocol,
        evaluator,
        write_record=lambda record: work.append("records", record),
        write_step=lambda step: work.append("steps", step),
        write_observation=lambda row: work.append("observations", row),
        after_batch=after_batch,
        start_batch=start,
        clock=clock,
    )


def _observe(work: Work, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        work.append("observations", row)


def _before_identity(editor: Editor, stream: Stream, protocol: Protocol) -> dict[str, Any]:
    """What decides the scores of the unedited backbone on the stream's rows: the same for every
    editor whose answers are scored by the same passes."""
    return {
        "backbone": editor.backbone.arithmetic,
        "stream": stream.content,
        "protocol": [
            protocol.max_new_tokens * protocol.decode,
            protocol.evaluation_batch,
            protocol.rounds,
            protocol.rivals,
        ],
        "max_length": [editor.config.max_length, editor.config.full_width],
        "whole_passes": needs_whole_passes(editor),
        "code": fingerprints.code("lib.evaluation.protocol", apart=fingerprints.TOLD),
    }


def _read_before(content: bytes | None) -> dict[str, list[Scored]]:
    stored = json.loads(content or b"{}")
    return {place: [_scored(row) for row in rows] for place, rows in stored.items()}


def _scored(row: dict[str, Any]) -> Scored:
    return Scored(**{k: tuple(v) if isinstance(v, list) else v for k, v in row.items()})


def _written_before(before: dict[str, list[Scored]]) -> bytes:
    plain = {place: [asdict(row) for row in rows] for place, rows in before.items()}
    return json.dumps(plain, ensure_ascii=False).encode("utf-8")
