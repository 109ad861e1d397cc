"""Does one run: loads what it needs, resumes or starts, edits and scores, fills the store."""

import json
import time
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from lib import atomic, backbones, data, fingerprints, machine, streams
from lib.backbones import Backbone
from lib.data.records import Dataset, Stream, content_hash
from lib.decoding import PromptBatch
from lib.editors import build
from lib.errors import StudyError
from lib.plan import Run
from lib.progress import Progress
from lib.protocol import Clock, Evaluator, Protocol, Scored, run_sequence
from lib.store import Store, Work

CHECKPOINT_SECONDS = 30.0


@dataclass
class Shared:
    """What consecutive runs of one process share: the backbone, data, and frozen passes."""

    data_dir: Path | None = None
    strict: bool = True
    source: str = "embedded"
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    _backbone: tuple[str, Backbone] | None = None
    _datasets: dict[str, Dataset] = field(default_factory=dict)
    _passes: dict[Any, PromptBatch] = field(default_factory=dict)
    _outputs: dict[Any, list[Scored]] = field(default_factory=dict)

    def dataset(self, name: str, limit: int | None) -> Dataset:
        """A dataset, read once."""
        key = f"{name}/{limit}"
        if key not in self._datasets:
            source = None if self.data_dir else self.source
            self._datasets[key] = data.load(
                name, data_dir=self.data_dir, strict=self.strict, limit=limit, source=source
            )
        return self._datasets[key]

    def edits_of(self, spec: dict[str, Any]) -> Dataset:
        """Edits of the setting's dataset with its upstream pool filled in."""
        dataset = self.dataset(spec["dataset"]["name"], spec["stream"].get("limit"))
        if not dataset.upstream:
            dataset = _with_upstream(dataset, self.dataset("nq", None))
        return dataset

    def backbone(self, spec: dict[str, Any]) -> Backbone:
        """The setting's backbone; tuned on its upstream slice where the setting says so."""
        key = content_hash([spec["backbone"], spec["tune"], spec["dataset"], spec["device"]])
        if self._backbone is None or self._backbone[0] != key:
            self._backbone, self._passes, self._outputs = None, {}, {}
            pairs = self._tuning_pairs(spec)
            loaded = backbones.load(
                spec["backbone"], dtype=torch.float32, device=spec["device"], tune_on=pairs
            )
            self._backbone = key, loaded
        return self._backbone[1]

    def _tuning_pairs(self, spec: dict[str, Any]) -> tuple[tuple[str, str], ...] | None:
        if not spec["tune"]:
            return None
        dataset = self.edits_of(spec)
        probes = [
            *streams.pool(dataset, "upstream", spec["tune"]["upstream"]),
            *streams.pool(dataset, "near", spec["tune"]["near"]),
        ]
        return tuple((probe.prompt, probe.target) for probe in probes)

    def forget(self) -> None:
        """Drop the backbone: after a failure its state is not trusted."""
        self._backbone, self._passes, self._outputs = None, {}, {}


def _with_upstream(dataset: Dataset, questions: Dataset) -> Dataset:
    from dataclasses import replace

    return replace(
        dataset,
        upstream=questions.upstream,
        sources=(*dataset.sources, *questions.sources),
        substitution=" ".join(filter(None, (dataset.substitution, questions.substitution))),
    )


def stream_of(spec: dict[str, Any], dataset: Dataset) -> Stream:
    """The stream that a run edits."""
    options = {key: value for key, value in spec["stream"].items() if key != "limit"}
    return streams.balanced_stream(dataset, **options)


def execute(run: Run, store: Store, shared: Shared, progress: Progress) -> bool:
    """Make sure that the run is finished; True if it is, False if it failed (noted in the store).

    Another process working on the same run is waited for. A failure never leaves this function
    as an exception, so that the other runs of a plan go on; an interrupt by the user does.
    """
    with store.lock(run.identity):
        if store.finished(run.identity) is not None:
            return True
        began = time.monotonic()
        try:
            _execute(run, store, shared, progress)
        except Exception as error:
            shared.forget()
            told = str(error) if isinstance(error, StudyError) else traceback.format_exc()
            store.fail(run.identity, {"title": run.title, "spec": run.spec}, told)
            progress.start(run.title, 0, 0)
            progress.finish(f"failed after {time.monotonic() - began:.0f} s: {str(error)[:300]}")
            return False
    return True


def _execute(run: Run, store: Store, shared: Shared, progress: Progress) -> None:
    spec = run.spec
    with machine.PeakMemory(spec["device"]) as memory, machine.deterministic(run.seed):
        dataset = shared.edits_of(spec)
        backbone = shared.backbone(spec)
        stream = stream_of(spec, dataset)
        protocol = Protocol(**spec["protocol"])
        editor = build(
            spec["editor"], backbone, spec["config"], blocks_cache=store.root / "shared" / "blocks"
        )
        work = store.work(run.identity)
        try:
            base_file = _base_file(store, backbone, stream, protocol, spec["config"])
            base = _read_base(base_file)
            evaluator = Evaluator(
                editor,
                stream,
                protocol,
                base=base,
                passes=shared._passes,
                outputs=shared._outputs,
            )
            evaluator.score_unedited()
            if not base_file.exists():
                _write_base(base_file, evaluator.base)
            progress.start(run.title, len(stream.edits), 0)
            clock = _sequence(work, editor, stream, protocol, evaluator, progress, shared)
            manifest = {
                "title": run.title,
                "spec": spec,
                "seed": run.seed,
                "dataset": {
                    "name": dataset.name,
                    "content": stream.content,
                    "sources": dataset.sources,
                    "substitution": dataset.substitution,
                    "skipped": [asdict(bad) for bad in dataset.skipped],
                    "counts": {
                        "edits": len(stream.edits),
                        "holdout": len(stream.holdout),
                        "upstream": len(stream.upstream),
                        "near": len(stream.near),
                        "facts": len({edit.relation for edit in stream.edits}),
                        "answers": len({edit.target for edit in stream.edits}),
                    },
                },
                "backbone": {
                    "name": backbone.name,
                    "content": backbone.content,
                    "provenance": backbone.provenance,
                    "substitution": backbone.substitution,
                    "dtype": str(backbone.dtype),
                },
                "seconds": asdict(clock),
                "peak_memory_bytes": memory.bytes,
                **machine.provenance(spec["device"]),
            }
            store.finish(run.identity, work, manifest, editor.save)
        finally:
            work.close()
            editor.close()
    progress.finish("done")


def _sequence(
    work: Work,
    editor: Any,
    stream: Stream,
    protocol: Protocol,
    evaluator: Evaluator,
    progress: Progress,
    shared: Shared,
) -> Clock:
    start = work.position["batches"]
    clock = Clock(**work.position["clock"])
    if start:
        editor.load(work.saved_editor)
        progress.advance(editor.n_edits)
    saved = time.monotonic()

    def after_batch(done: int) -> None:
        nonlocal saved
        progress.advance(editor.n_edits)
        if time.monotonic() - saved >= shared.checkpoint_seconds:
            work.checkpoint(done, asdict(clock), editor.save)
            saved = time.monotonic()

    return run_sequence(
        editor,
        stream,
        protocol,
        evaluator,
        write_record=lambda record: work.append("records", record),
        write_step=lambda step: work.append("steps", step),
        after_batch=after_batch,
        start_batch=start,
        clock=clock,
    )


def _base_file(
    store: Store, backbone: Backbone, stream: Stream, protocol: Protocol, config: dict[str, Any]
) -> Path:
    """Scores of the unedited backbone on the stream's rows: the same for every editor."""
    key = content_hash(
        {
            "backbone": backbone.content,
            "stream": stream.content,
            "protocol": asdict(protocol),
            "max_length": config.get("max_length"),
            "device": str(backbone.device),
            "code": fingerprints.code("lib.protocol"),
            "versions": fingerprints.versions(),
        }
    )
    return store.root / "shared" / f"base-{key[:24]}.json"


def _read_base(path: Path) -> dict[str, list[Scored]]:
    try:
        stored = json.loads(path.read_text("utf-8"))
        return {
            place: [
                Scored(tuple(row["ids"]), row["text"], row["nll"], row["token_accuracy"])
                for row in rows
            ]
            for place, rows in stored.items()
        }
    except (FileNotFoundError, json.JSONDecodeError, KeyError):
        return {}


def _write_base(path: Path, base: dict[str, list[Scored]]) -> None:
    plain = {place: [asdict(row) for row in rows] for place, rows in base.items()}
    atomic.write_text(path, json.dumps(plain, ensure_ascii=False))
