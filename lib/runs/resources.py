"""What a run is made of, step by step: facts, lessons, backbone, known, chosen, stream, learned.

Each step is a function of the ones before it and of the run's spec. `Resources` walks them in this
order and keeps what they give while consecutive runs ask for the same.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from lib.backbones.backbone import Backbone, cast
from lib.backbones.encoding import check_length
from lib.backbones.knowledge import answered, known_facts, likelihoods
from lib.backbones.passes.kept import Kept
from lib.backbones.sources import loading
from lib.backbones.tuning.classes import ClassifierConfig, tune_classifier
from lib.backbones.tuning.predictions import Flips
from lib.data import corpus, datasets, streams
from lib.data.corpus import Corpus
from lib.data.embedded import facts, passages
from lib.data.embedded.known import Knowledge, Likelihoods
from lib.data.records import Dataset, Edit, Probe, Stream
from lib.data.streams import PromptStyle
from lib.data.training import (
    TrainingFacts,
    UpstreamTask,
    document_facts,
    training_facts,
    upstream_task,
)
from lib.errors import UsageError
from lib.evaluation.evaluator import Protocol
from lib.evaluation.general.embedded import general_probes
from lib.runs import machine
from lib.storage.atomic import CHECKPOINT_SECONDS
from lib.storage.fingerprints import content_hash

MEMORY_SHARE = 1 / 8  # of the machine's memory: what passes may keep, in each process
EVERY = 10**9  # a limit beyond any number of records: the embedded data then lift their caps
UNORDERED = ("batch_size", "seed", "first")  # of a stream: decide nothing of what editors learn

Spec = Mapping[str, Any]
Known = Knowledge | Likelihoods | None
Lessons = UpstreamTask | tuple[tuple[str, str], ...] | None
Read = Callable[..., Dataset]  # (name, limit, known, variant)
T = TypeVar("T")


@dataclass(frozen=True)
class Materials:
    """Everything that a run takes beside its editor's configuration and its protocol. `dataset`:
    what might have been edited; `learned`, `corpus`: facts and text for editors that want them;
    `kept`: what earlier runs on the backbone left in memory."""

    backbone: Backbone
    dataset: Dataset
    known: Known
    stream: Stream
    learned: TrainingFacts | None
    corpus: Corpus | None
    kept: Kept
    data_dir: Path | None = None

    @property
    def contents(self) -> dict[str, str]:
        """Hashes of what decides a result: of the weights as used, tuned ones included."""
        backbone = self.backbone
        found = {
            "backbone": content_hash(
                [backbone.content, backbone.prefix, backbone.eos_id, backbone.pad_id]
            ),
            "stream": self.stream.content,
        }
        given = {"learned": self.learned, "corpus": self.corpus}
        return found | {name: part.content for name, part in given.items() if part is not None}


# -- the steps -------------------------------------------------------------------------------------


def facts_of(read: Read, spec: Spec, known: Known = None) -> Dataset:
    """1. What the files say: the setting's dataset, up to the stream's limit, with an upstream pool
    where one is asked for. `known` shapes the embedded data."""
    limit = spec["stream"].get("limit")
    dataset = read(spec["dataset"]["name"], limit, known, spec.get("variant"))
    wanted = spec["stream"].get("n_upstream", 1) or spec["tune"]
    return _with_questions(read, dataset) if wanted else dataset


def all_facts(read: Read, spec: Spec) -> Dataset:
    """1. The same without a limit, from the file that training facts come from."""
    return read(spec["dataset"]["name"], EVERY, None, _training_variant(spec))


def lessons_of(read: Read, spec: Spec) -> Lessons:
    """2. What the backbone learns before any edit: texts with classes, or questions with answers;
    None for a backbone that is taken as it is."""
    tune = spec["tune"]
    if not tune:
        return None
    if {"claims", "documents"} & set(tune):
        return upstream_task(all_facts(read, spec), tune)
    dataset = facts_of(read, spec)
    pools = (streams.pool(dataset, kind, tune[kind]) for kind in ("upstream", "near"))
    return tuple((probe.prompt, probe.target) for pool in pools for probe in pool)


def backbone_of(spec: Spec, lessons: Lessons, labels: int | None) -> Backbone:
    """3. The backbone, taught its lessons in float32 and rounded afterwards. `labels`: the classes
    of a new classification head."""
    name, device = spec["backbone"], spec["device"]
    dtype = getattr(torch, spec.get("dtype", "float32"))
    if not isinstance(lessons, UpstreamTask):
        return loading.load(name, dtype=dtype, device=device, tune_on=lessons, num_labels=labels)
    base = loading.load(name, device=device, num_labels=labels)
    config = ClassifierConfig.of(spec["tune"])
    tuned = tune_classifier(base, lessons.learned, lessons.held_out, config, lessons.kind)
    return replace(tuned, model=cast(tuned.model, dtype), dtype=dtype)


def known_of(spec: Spec, backbone: Backbone) -> Known:
    """4. What the backbone knows of the first `known` embedded facts, or how likely it finds the
    first so many sentences; None for published files and for settings that do not ask."""
    name, cap = spec["dataset"]["name"], spec.get("known")
    if cap is None or spec["dataset"].get("source") != "embedded" or name in datasets.INVENTED:
        return None
    if name == "hallucination":
        return likelihoods(backbone, passages.candidates(), cap=cap)
    forms = ("canonical",) if name == "counterfact" else None
    return known_facts(backbone, facts.candidates(name), cap=cap, forms=forms)


def chosen_of(read: Read, spec: Spec, lessons: Lessons, known: Known) -> Dataset:
    """5. What may be edited: facts by what is known of them, without the claims that the backbone
    was taught; documents stay and are told apart, those it learned from those held out."""
    if not isinstance(lessons, UpstreamTask):
        return facts_of(read, spec, known)
    name, limit = spec["dataset"]["name"], spec["stream"].get("limit")
    apart = lessons.apart_from(read(name, limit, known, spec.get("variant")))
    wanted = spec["stream"].get("n_upstream", 1) or spec["tune"]
    return _with_questions(read, apart) if wanted else apart


def unanswered(chosen: Dataset, spec: Spec, backbone: Backbone) -> Dataset:
    """5. The facts that the backbone does not answer before any edit, as the stream words them, for
    streams that ask for these alone; the others are counted."""
    style = streams.PromptStyle.of(spec["stream"])
    right = answered(backbone, [style.edit(edit) for edit in chosen.edits])
    told = f"{len(right)} facts that the backbone answers before any edit"
    return replace(
        chosen,
        edits=tuple(edit for edit in chosen.edits if edit.identity not in right),
        near=streams.pool(chosen, "near", len(chosen.edits)),  # what was taught, as it was
        left_out=(*chosen.left_out, told) if right else chosen.left_out,
    )


def stream_of(spec: Spec, chosen: Dataset, flips: Flips | None) -> Stream:
    """6. The stream that is edited; its targets are against the backbone's predictions where the
    setting says so. `n_general`: items per task of general ability (0: none)."""
    options = spec["stream"]
    if flips is not None:
        rules = ("n_edits", "dedup_subjects", "need_subject")
        given = {rule: options[rule] for rule in rules if rule in options}
        measured = options.get("max_rephrases", 1)
        bare = [
            replace(edit, rephrases=edit.rephrases[:measured])
            for edit in streams.chosen_records(chosen, **given)
        ]
        chosen = replace(chosen, edits=tuple(flips.of(bare)))
    made = streams.stream_of(spec, chosen)
    name, count = spec["dataset"]["name"], options.get("n_general", 0)
    return replace(made, general=general_probes(name, count, chosen.edits))


def readable(
    spec: Spec, chosen: Dataset, flips: Flips | None, backbone: Backbone, *, strict: bool
) -> Stream:
    """6. The stream of prompts that the backbone can read with their answers; a longer one is a
    RecordError if `strict`, else its record is left out."""
    protocol = Protocol(**spec.get("protocol", {}))
    length = spec.get("config", {}).get("max_length")
    written = max(0, protocol.max_new_tokens * protocol.decode - 1)  # the last is not read

    def check(row: Edit | Probe) -> None:
        check_length(backbone, row, max_length=length, written=written)

    return streams.readable_stream(
        chosen, lambda source: stream_of(spec, source, flips), check, strict=strict
    )


def learned_of(
    read: Read, spec: Spec, lessons: Lessons, chosen: Dataset, flips: Flips | None
) -> TrainingFacts:
    """7. The facts that editors are trained on: from the setting's dataset, from the file
    `training.variant` where files are read, worded and turned as the stream is.

    Where the stream has a `limit`, they share nothing with the facts within it, edited or not:
    settings that edit different numbers of them train alike.
    """
    wide = spec | {"stream": _within_limit(spec["stream"], chosen)}
    counts = {name: spec["training"][name] for name in ("n_train", "n_valid")}
    test, options = stream_of(wide, chosen, flips), wide["stream"]
    if options.get("kind") == "documents":
        return document_facts(chosen, test, **counts)
    records = all_facts(read, spec)
    if isinstance(lessons, UpstreamTask):
        records = lessons.apart_from(records)

    def finish(chunk: list[Edit]) -> list[Edit]:
        return [edit for edit in flips.of(chunk) if edit.rephrases] if flips else chunk

    return training_facts(
        _with_questions(read, records),
        test,
        **counts,
        style=PromptStyle.of(options),
        held_out=options.get("max_rephrases", 1),
        finish=finish,
    )


def _with_questions(read: Read, dataset: Dataset) -> Dataset:
    """The dataset with an upstream pool: its own, else Natural Questions."""
    if dataset.upstream:
        return dataset
    questions = read("nq", None, None, None)
    return replace(
        dataset,
        upstream=questions.upstream,
        sources=(*dataset.sources, *questions.sources),
        skipped=(*dataset.skipped, *questions.skipped),
        left_out=(*dataset.left_out, *questions.left_out),
        substitution=" ".join(filter(None, (dataset.substitution, questions.substitution))),
    )


def _within_limit(options: Spec, chosen: Dataset) -> dict[str, Any]:
    """A stream's options with every usable fact within its limit edited."""
    whole = {name: value for name, value in options.items() if name != "first"}
    if not options.get("limit") or options.get("dedup_subjects"):
        return whole
    needed = options.get("need_subject", True)
    usable = sum(bool(edit.subject) or not needed for edit in chosen.edits)
    return whole | {"n_edits": max(options["n_edits"], usable)}


def _training_variant(spec: Spec) -> str | None:
    """The published file that facts for training are read from."""
    return (spec.get("training") or {}).get("variant", spec.get("variant"))


# -- the road --------------------------------------------------------------------------------------


@dataclass
class Resources:
    """Makes the materials of runs: each thing once while consecutive runs of a process ask for the
    same; one backbone is held at a time."""

    data_dir: Path | None = None
    strict: bool = True
    source: str = "embedded"
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    _steps: dict[str, dict[str, Any]] = field(default_factory=dict)
    _passes: Kept = field(default_factory=Kept)

    def materials(self, spec: Spec, needs: tuple[str, ...] = ("training", "corpus")) -> Materials:
        """The materials that a run's spec names; of facts to learn and text, what `needs` names."""
        name, options, dtype = spec["dataset"]["name"], spec["stream"], spec.get("dtype", "float32")
        told = [name, options.get("limit"), options.get("n_upstream", 1), spec.get("variant")]
        taught = [spec["tune"], *(told if spec["tune"] else ()), _training_variant(spec)]
        lessons = self._once("lessons", taught, lambda: lessons_of(self.read, spec))
        if spec["dataset"].get("source") != "embedded":
            plain = {**options, "n_general": 0}
            self._once("enough", [told, taught, plain], lambda: self._is_enough(spec, lessons))
        used = [spec["backbone"], spec["device"], dtype, name, taught]
        backbone = self._once("backbone", used, lambda: self._load(spec, lessons), held=1)
        asked = [name, spec.get("known"), backbone.content, dtype]
        known = self._once("known", asked, lambda: known_of(spec, backbone))
        picked = [told, taught, known and known.content]
        chosen = self._once("chosen", picked, lambda: chosen_of(self.read, spec, lessons, known))
        if options.get("unanswered"):
            picked = [picked, used, backbone.content, options.get("template")]
            facts = chosen
            chosen = self._once("chosen", picked, lambda: unanswered(facts, spec, backbone))
        turned = bool(options.get("flip_predictions"))
        if turned and options.get("template", "{}") != "{}":
            raise UsageError("flip_predictions classifies bare claims: give no template")
        flips = self._once("flips", used, lambda: Flips(backbone), held=1) if turned else None
        stream = readable(spec, chosen, flips, backbone, strict=self.strict)
        learned = text = None
        if "training" in needs and spec.get("training"):
            wide = _within_limit(options, chosen)
            plain = {key: value for key, value in wide.items() if key not in UNORDERED}
            wanted = [picked, used if turned else None, plain, spec["training"]]
            learned = self._once(
                "learned", wanted, lambda: learned_of(self.read, spec, lessons, chosen, flips)
            )
        if "corpus" in needs and spec.get("corpus"):
            source = spec["corpus"]
            text = self._once(
                "corpus", source, lambda: corpus.load(source, self.data_dir, strict=self.strict)
            )
        return Materials(
            backbone, chosen, known, stream, learned, text, self._passes, self.data_dir
        )

    def read(self, name: str, limit: int | None, known: Known, variant: str | None) -> Dataset:
        """A dataset, read once; `known` shapes the embedded data only, `variant` picks one of
        several published files."""
        return self._once(
            "facts",
            [name, limit, known and known.content, variant],
            lambda: datasets.load(
                name,
                data_dir=self.data_dir,
                strict=self.strict,
                limit=limit,
                known=known,
                variant=variant if self.data_dir or self.source == "hub" else None,
                source=self.source,
            ),
        )

    def forget(self) -> None:
        """Drop the backbone and what it said: after a failure its state is not trusted."""
        self._passes = Kept()
        self._steps.pop("backbone", None)
        self._steps.pop("flips", None)

    def _is_enough(self, spec: Spec, lessons: Lessons) -> bool:
        """Whether the stream has an edit: too few records are told before any weights are read."""
        plain = {**spec, "stream": {**spec["stream"], "n_general": 0}}
        return bool(stream_of(plain, chosen_of(self.read, spec, lessons, None), None).edits)

    def _load(self, spec: Spec, lessons: Lessons) -> Backbone:
        self.forget()  # before another one takes memory
        self._passes = Kept(machine.memory_gigabytes(spec["device"]) * 2**30 * MEMORY_SHARE)
        to_classify = spec["dataset"]["name"] in datasets.CLASSIFIED
        new_head = to_classify and not loading.has_head(spec["backbone"])
        return backbone_of(spec, lessons, all_facts(self.read, spec).classes if new_head else None)

    def _once(self, step: str, key: object, make: Callable[[], T], held: int | None = None) -> T:
        """What a step gives for a key, made at most once; `held`: how many keys are kept."""
        name = content_hash(key)
        if name not in self._steps.get(step, {}):
            made = make()
            earlier = self._steps.setdefault(step, {})
            while held is not None and len(earlier) >= held:
                earlier.pop(next(iter(earlier)))
            earlier[name] = made
        return self._steps[step][name]
