"""What consecutive runs of one process share: the backbone, data, texts and frozen passes."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from lib.backbones.backbone import Backbone, cast
from lib.backbones.knowledge import likelihoods
from lib.backbones.passes.decoding import PromptBatch
from lib.backbones.sources import loading
from lib.backbones.tuning.classes import ClassifierConfig, tune_classifier
from lib.backbones.tuning.predictions import Flips
from lib.data import corpus, datasets, streams
from lib.data.corpus import Corpus
from lib.data.embedded.known import Knowledge, Likelihoods
from lib.data.records import Dataset, Edit, Stream
from lib.data.streams import PromptStyle
from lib.data.training import (
    TrainingFacts,
    UpstreamTask,
    document_facts,
    training_facts,
    upstream_task,
)
from lib.errors import UsageError
from lib.evaluation.general.embedded import general_probes
from lib.evaluation.scoring import Scored
from lib.storage.fingerprints import content_hash

CHECKPOINT_SECONDS = 30.0
UNORDERED = ("batch_size", "seed")
EVERY = 10**9  # a limit beyond any number of records: the embedded data then lift their caps


@dataclass
class Resources:
    """Loads what a run's spec names, each thing once while consecutive runs need the same."""

    data_dir: Path | None = None
    strict: bool = True
    source: str = "embedded"
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    _backbone: tuple[str, Backbone] | None = None
    _datasets: dict[str, Dataset] = field(default_factory=dict)
    _knowledge: dict[str, Knowledge | Likelihoods] = field(default_factory=dict)
    _corpora: dict[str, Corpus] = field(default_factory=dict)
    _passes: dict[Any, PromptBatch] = field(default_factory=dict)
    _outputs: dict[Any, list[Scored]] = field(default_factory=dict)
    _training: dict[str, TrainingFacts] = field(default_factory=dict)
    _fact_states: dict[Any, Any] = field(default_factory=dict)
    _turned: Flips | None = None

    def dataset(
        self,
        name: str,
        limit: int | None,
        known: Knowledge | Likelihoods | None = None,
        variant: str | None = None,
    ) -> Dataset:
        """A dataset, read once; `known` shapes the embedded data only, `variant` picks one of
        several published files."""
        key = f"{name}/{limit}/{known.content if known else ''}/{variant}"
        if key not in self._datasets:
            self._datasets[key] = datasets.load(
                name,
                data_dir=self.data_dir,
                strict=self.strict,
                limit=limit,
                known=known,
                variant=variant if self.data_dir else None,
                source=None if self.data_dir else self.source,
            )
        return self._datasets[key]

    def edits_of(self, spec: dict[str, Any]) -> Dataset:
        """Edits of the setting's dataset with its upstream pool filled in; where the spec says
        `known` and the data is embedded, edits chosen by what the backbone knows."""
        return self._edits_of(spec, self.knowledge(spec))

    def _edits_of(self, spec: dict[str, Any], known: Knowledge | Likelihoods | None) -> Dataset:
        name, limit = spec["dataset"]["name"], spec["stream"].get("limit")
        dataset = self._apart(spec, self.dataset(name, limit, known, spec.get("variant")))
        wanted = spec["stream"].get("n_upstream", 1) or spec["tune"]
        return self._with_questions(dataset) if wanted else dataset

    def _apart(self, spec: dict[str, Any], dataset: Dataset) -> Dataset:
        """The dataset without the claims that the setting's classifier was tuned on; documents stay
        and are told apart, those it learned from those held out."""
        taught = self.taught(spec)
        return dataset if taught is None else taught.apart_from(dataset)

    def taught(self, spec: dict[str, Any]) -> UpstreamTask | None:
        """What the setting's classifier is tuned on; None for other backbones."""
        if not {"claims", "documents"} & set(spec["tune"] or ()):
            return None
        return upstream_task(self._all(spec), spec["tune"])

    def _all(self, spec: dict[str, Any]) -> Dataset:
        """The setting's dataset, or the one its training facts come from, without a limit."""
        return self.dataset(spec["dataset"]["name"], EVERY, None, _training_variant(spec))

    def _with_questions(self, dataset: Dataset) -> Dataset:
        """The dataset with an upstream pool: its own, else Natural Questions."""
        if dataset.upstream:
            return dataset
        questions = self.dataset("nq", None)
        return replace(
            dataset,
            upstream=questions.upstream,
            sources=(*dataset.sources, *questions.sources),
            substitution=" ".join(filter(None, (dataset.substitution, questions.substitution))),
        )

    def stream(self, spec: dict[str, Any]) -> Stream:
        """The stream that a run edits; its targets are against the backbone's predictions where
        the setting says so. `n_general`: items per task of general ability (0: none)."""
        dataset, options = self.edits_of(spec), spec["stream"]
        if options.get("flip_predictions"):
            if options.get("template", "{}") != "{}":
                raise UsageError("flip_predictions classifies bare claims: give no template")
            rules = ("n_edits", "dedup_subjects", "need_subject")
            chosen = streams.chosen_records(
                dataset, **{rule: options[rule] for rule in rules if rule in options}
            )
            measured = options.get("max_rephrases", 1)
            bare = [replace(edit, rephrases=edit.rephrases[:measured]) for edit in chosen]
            dataset = replace(dataset, edits=tuple(self._flips(spec).of(bare)))
        made = streams.stream_of(spec, dataset)
        name, count = spec["dataset"]["name"], options.get("n_general", 0)
        return replace(made, general=general_probes(name, count, dataset.edits))

    def _within_limit(self, spec: dict[str, Any]) -> dict[str, Any]:
        """The spec with every usable fact within the stream's limit edited."""
        options = spec["stream"]
        if not options.get("limit") or options.get("dedup_subjects"):
            return spec
        usable = [
            edit
            for edit in self.edits_of(spec).edits
            if edit.subject or not options.get("need_subject", True)
        ]
        n_edits = max(options["n_edits"], len(usable))
        return spec | {"stream": {**options, "n_edits": n_edits}}

    def _flips(self, spec: dict[str, Any]) -> Flips:
        backbone = self.backbone(spec)
        if self._turned is None:
            self._turned = Flips(backbone)
        return self._turned

    def training(self, spec: dict[str, Any]) -> TrainingFacts | None:
        """The facts that editors of the setting are trained on; None if it names none.

        They come from the setting's dataset, from the file `training.variant` where files are
        read, and are worded and turned as the stream is. Where the stream has a `limit`, they
        share nothing with the facts within it, edited or not: settings that edit different
        numbers of them train alike.
        """
        wanted = spec.get("training")
        if not wanted:
            return None
        # Runs that edit the beginning of a stream alone train like those that edit it all.
        whole = {name: value for name, value in spec["stream"].items() if name != "first"}
        spec = self._within_limit(spec | {"stream": whole})
        options = spec["stream"]
        # Order and batches of the stream decide nothing here: every m has the same facts.
        chosen = {name: value for name, value in options.items() if name not in UNORDERED}
        parts = ("backbone", "dataset", "tune", "known", "variant", "dtype", "training")
        key = content_hash([chosen, *(spec.get(part) for part in parts)])
        if key not in self._training and options.get("kind") == "documents":
            self._training[key] = document_facts(
                self.edits_of(spec),
                self.stream(spec),
                n_train=wanted["n_train"],
                n_valid=wanted["n_valid"],
            )
        if key not in self._training:
            name, variant = spec["dataset"]["name"], _training_variant(spec)
            records = self._apart(spec, self.dataset(name, EVERY, None, variant))
            flips = self._flips(spec) if options.get("flip_predictions") else None

            def finish(chunk: list[Edit]) -> list[Edit]:
                return [edit for edit in flips.of(chunk) if edit.rephrases] if flips else chunk

            self._training[key] = training_facts(
                self._with_questions(records),
                self.stream(spec),
                n_train=wanted["n_train"],
                n_valid=wanted["n_valid"],
                style=PromptStyle.of(options),
                held_out=options.get("max_rephrases", 1),
                finish=finish,
            )
        return self._training[key]

    def knowledge(self, spec: dict[str, Any]) -> Knowledge | Likelihoods | None:
        """What the backbone knows of the embedded facts, the first `known` of them asked, or how
        likely it finds the first so many sentences; None for data that is not embedded and for
        settings that do not ask."""
        name, cap = spec["dataset"]["name"], spec.get("known")
        if cap is None or self.data_dir or self.source != "embedded" or name.startswith("invented"):
            return None
        from lib.backbones import knowledge
        from lib.data.embedded import facts, passages

        backbone = self.backbone(spec)
        key = f"{backbone.content}/{backbone.dtype}/{name}/{cap}"
        if key not in self._knowledge and name == "hallucination":
            self._knowledge[key] = likelihoods(backbone, passages.candidates(), cap=cap)
        elif key not in self._knowledge:
            self._knowledge[key] = knowledge.known_facts(
                backbone,
                facts.candidates(name),
                cap=cap,
                forms=("canonical",) if name == "counterfact" else None,
            )
        return self._knowledge[key]

    def corpus(self, spec: dict[str, Any]) -> Corpus | None:
        """The text for key statistics that the spec names, read once; None if it names none."""
        name = spec.get("corpus")
        if name is not None and name not in self._corpora:
            self._corpora[name] = corpus.load(name, self.data_dir)
        return self._corpora.get(name)

    def backbone(self, spec: dict[str, Any]) -> Backbone:
        """The setting's backbone; tuned on its upstream slice where the setting says so."""
        dtype = spec.get("dtype", "float32")
        decides = [spec["backbone"], spec["tune"], spec["dataset"], spec["device"], dtype]
        key = content_hash([*decides, _training_variant(spec)])
        if self._backbone is None or self._backbone[0] != key:
            self.forget()
            self._backbone = key, self._loaded(spec, getattr(torch, dtype))
        return self._backbone[1]

    def _loaded(self, spec: dict[str, Any], dtype: torch.dtype) -> Backbone:
        name, device, taught = spec["backbone"], spec["device"], self.taught(spec)
        labels = self._all(spec).classes if self._gets_head(spec) else None
        if taught is None:
            pairs = self._tuning_pairs(spec)
            return loading.load(name, dtype=dtype, device=device, tune_on=pairs, num_labels=labels)
        base = loading.load(name, device=device, num_labels=labels)  # float32: rounded once tuned
        config = ClassifierConfig.of(spec["tune"])
        tuned = tune_classifier(base, taught.learned, taught.held_out, config, taught.kind)
        return replace(tuned, model=cast(tuned.model, dtype), dtype=dtype)

    def _gets_head(self, spec: dict[str, Any]) -> bool:
        """Whether the backbone gets a new classification head, with the classes of the data."""
        to_classify = spec["dataset"]["name"] in datasets.CLASSIFIED
        return to_classify and not loading.has_head(spec["backbone"])

    def _tuning_pairs(self, spec: dict[str, Any]) -> tuple[tuple[str, str], ...] | None:
        if not spec["tune"]:
            return None
        dataset = self._edits_of(spec, None)
        probes = [
            *streams.pool(dataset, "upstream", spec["tune"]["upstream"]),
            *streams.pool(dataset, "near", spec["tune"]["near"]),
        ]
        return tuple((probe.prompt, probe.target) for probe in probes)

    def forget(self) -> None:
        """Drop the backbone: after a failure its state is not trusted."""
        self._backbone, self._passes, self._outputs, self._fact_states = None, {}, {}, {}
        self._turned = None


def _training_variant(spec: dict[str, Any]) -> str | None:
    """The published file that facts for training are read from."""
    return (spec.get("training") or {}).get("variant", spec.get("variant"))
