"""Does one run: loads what it needs, resumes or starts, edits and scores, fills the store."""

import json
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lib.backbones.backbone import Backbone
from lib.data.embedded.known import Knowledge
from lib.data.records import Dataset, Stream
from lib.data.training import TrainingFacts
from lib.editors import build, needs_of
from lib.editors.base import Editor
from lib.errors import StudyError
from lib.evaluation import timing
from lib.evaluation.evaluator import Evaluator, Protocol
from lib.evaluation.general.ability import GeneralTasks
from lib.evaluation.protocol import Clock, run_sequence
from lib.evaluation.scoring import Scored, needs_whole_passes
from lib.runs import machine
from lib.runs.plan import Run
from lib.runs.progress import Progress
from lib.runs.resources import Resources
from lib.runs.store import Store, Work
from lib.storage import fingerprints
from lib.storage.cache import Cache

INFERENCE_PROMPTS = 8
TRAINING_EXAMPLES = 2  # facts of the training that the manifest shows


def execute(run: Run, store: Store, resources: Resources, progress: Progress) -> bool:
    """Make sure that the run is finished; True if it is, False if it failed (noted in the store).

    Another process working on the same run is waited for. A failure never leaves this function
    as an exception, so that the other runs of a plan go on; an interrupt by the user does.
    """
    with store.lock(run.identity):
        if store.finished(run.identity) is not None:
            return True
        began = time.monotonic()
        try:
            _execute(run, store, resources, progress)
        except Exception as error:
            resources.forget()
            told = str(error) if isinstance(error, StudyError) else traceback.format_exc()
            store.fail(run.identity, {"title": run.title, "spec": run.spec}, told)
            progress.start(run.title, 0, 0)
            progress.finish(f"failed after {time.monotonic() - began:.0f} s: {str(error)[:300]}")
            return False
    return True


def _execute(run: Run, store: Store, resources: Resources, progress: Progress) -> None:
    spec = run.spec
    with machine.PeakMemory(spec["device"]) as memory, machine.deterministic(run.seed):
        dataset = resources.edits_of(spec)
        backbone = resources.backbone(spec)
        stream = resources.stream(spec)
        protocol = Protocol(**spec["protocol"])
        base_seconds = _inference_seconds(backbone, stream, protocol, spec)
        needed = _needed(spec, store, resources)
        editor = build(spec["editor"], backbone, spec["config"], **needed)
        work = store.work(run.identity)
        try:
            identity = _before_identity(editor, stream, protocol)
            before = store.cache.read("before", identity)
            evaluator = Evaluator(
                editor,
                stream,
                protocol,
                before=_read_before(before) if before else {},
                passes=resources._passes,
                outputs=resources._outputs,
            )
            evaluator.score_unedited()
            if before is None:
                store.cache.write("before", identity, _written_before(evaluator.before))
            progress.start(run.title, len(stream.edits), 0)
            general = GeneralTasks(
                editor,
                protocol,
                data_dir=resources.data_dir,
                identity=spec.get("general", {}),
                cache=store.cache,
            )
            if work.position["batches"] == 0:
                _observe(work, general.rows("before"))
            clock = _sequence(work, editor, stream, protocol, evaluator, progress, resources)
            _observe(work, general.rows("end"))
            manifest = {
                "title": run.title,
                "spec": spec,
                "seed": run.seed,
                "dataset": _describe_data(dataset, stream, resources.knowledge(spec)),
                "training": _describe_training(needed["training"]),
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
            store.finish(run.identity, work, manifest, _save(editor, protocol))
        finally:
            work.close()
            editor.close()
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


def _needed(spec: dict[str, Any], store: Store, resources: Resources) -> dict[str, Any]:
    """The caches, texts and facts that the editor asks for."""
    needs = needs_of(spec["editor"])
    return {
        "blocks_cache": store.cache,
        "values_cache": store.cache,
        "networks_cache": Cache.user(),
        "fact_states": resources._fact_states,
        "corpus": resources.corpus(spec) if "corpus" in needs else None,
        "training": resources.training(spec) if "training" in needs else None,
    }


def _describe_data(dataset: Dataset, stream: Stream, known: Knowledge | None) -> dict[str, Any]:
    """What the manifest says about the data; `known`: how many facts the backbone was asked."""
    return {
        "name": dataset.name,
        "content": stream.content,
        "sources": dataset.sources,
        "substitution": dataset.substitution,
        "skipped": [asdict(bad) for bad in dataset.skipped],
        "known": {"asked": len(known.answers), "content": known.content} if known else None,
        "notes": stream.notes,
        "counts": {
            "edits": len(stream.edits),
            "holdout": len(stream.holdout),
            "upstream": len(stream.upstream),
            "near": len(stream.near),
            **({"general": len(stream.general)} if stream.general else {}),
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
    resources: Resources,
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
        if time.monotonic() - saved >= resources.checkpoint_seconds:
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
        "code": fingerprints.code("lib.evaluation.protocol"),
    }


def _read_before(content: bytes) -> dict[str, list[Scored]]:
    stored = json.loads(content)
    return {place: [_scored(row) for row in rows] for place, rows in stored.items()}


def _scored(row: dict[str, Any]) -> Scored:
    return Scored(**{k: tuple(v) if isinstance(v, list) else v for k, v in row.items()})


def _written_before(before: dict[str, list[Scored]]) -> bytes:
    plain = {place: [asdict(row) for row in rows] for place, rows in before.items()}
    return json.dumps(plain, ensure_ascii=False).encode("utf-8")
