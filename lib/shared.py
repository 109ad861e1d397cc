"""What consecutive runs of one process share: the backbone, data, texts and frozen passes."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from lib import backbones, data, streams
from lib.backbones import Backbone
from lib.data.corpus import Corpus
from lib.data.knowledge import Knowledge
from lib.data.records import Dataset, content_hash
from lib.decoding import PromptBatch
from lib.scoring import Scored

CHECKPOINT_SECONDS = 30.0


@dataclass
class Shared:
    """Loads what a run's spec names, each thing once while consecutive runs need the same."""

    data_dir: Path | None = None
    strict: bool = True
    source: str = "embedded"
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    _backbone: tuple[str, Backbone] | None = None
    _datasets: dict[str, Dataset] = field(default_factory=dict)
    _knowledge: dict[str, Knowledge] = field(default_factory=dict)
    _corpora: dict[str, Corpus] = field(default_factory=dict)
    _passes: dict[Any, PromptBatch] = field(default_factory=dict)
    _outputs: dict[Any, list[Scored]] = field(default_factory=dict)

    def dataset(
        self,
        name: str,
        limit: int | None,
        known: Knowledge | None = None,
        variant: str | None = None,
    ) -> Dataset:
        """A dataset, read once; `known` shapes the embedded data only, `variant` picks one of
        several published files."""
        key = f"{name}/{limit}/{known.content if known else ''}/{variant}"
        if key not in self._datasets:
            self._datasets[key] = data.load(
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

    def _edits_of(self, spec: dict[str, Any], known: Knowledge | None) -> Dataset:
        name, limit = spec["dataset"]["name"], spec["stream"].get("limit")
        dataset = self.dataset(name, limit, known, spec.get("variant"))
        wanted = spec["stream"].get("n_upstream", 1) or spec["tune"]
        if wanted and not dataset.upstream:
            questions = self.dataset("nq", None)
            dataset = replace(
                dataset,
                upstream=questions.upstream,
                sources=(*dataset.sources, *questions.sources),
                substitution=" ".join(filter(None, (dataset.substitution, questions.substitution))),
            )
        return dataset

    def knowledge(self, spec: dict[str, Any]) -> Knowledge | None:
        """What the backbone knows of the embedded facts, the first `known` of them asked; None
        for data that is not embedded and for settings that do not ask."""
        name, cap = spec["dataset"]["name"], spec.get("known")
        if cap is None or self.data_dir or self.source != "embedded" or name.startswith("invented"):
            return None
        from lib.data import embedded, knowledge

        backbone = self.backbone(spec)
        key = f"{backbone.content}/{backbone.dtype}/{name}/{cap}"
        if key not in self._knowledge:
            self._knowledge[key] = knowledge.known_facts(
                backbone,
                embedded.candidates(name),
                cap=cap,
                forms=("canonical",) if name == "counterfact" else None,
            )
        return self._knowledge[key]

    def corpus(self, spec: dict[str, Any]) -> Corpus | None:
        """The text for key statistics that the spec names, read once; None if it names none."""
        from lib.data import corpus

        name = spec.get("corpus")
        if name is not None and name not in self._corpora:
            self._corpora[name] = corpus.load(name, self.data_dir)
        return self._corpora.get(name)

    def backbone(self, spec: dict[str, Any]) -> Backbone:
        """The setting's backbone; tuned on its upstream slice where the setting says so."""
        dtype = spec.get("dtype", "float32")
        key = content_hash([spec["backbone"], spec["tune"], spec["dataset"], spec["device"], dtype])
        if self._backbone is None or self._backbone[0] != key:
            self._backbone, self._passes, self._outputs = None, {}, {}
            loaded = backbones.load(
                spec["backbone"],
                dtype=getattr(torch, dtype),
                device=spec["device"],
                tune_on=self._tuning_pairs(spec),
            )
            self._backbone = key, loaded
        return self._backbone[1]

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
        self._backbone, self._passes, self._outputs = None, {}, {}
