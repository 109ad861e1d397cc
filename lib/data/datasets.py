"""Datasets by name: the published files where they are given, the embedded substitute otherwise."""

import dataclasses
import os
from pathlib import Path

from lib.data import invented
from lib.data.embedded import claims, documents, facts, passages
from lib.data.embedded.known import Knowledge, Likelihoods
from lib.data.published import counterfact, fever, hallucination, hub, nq, scotus, zsre
from lib.data.records import Dataset
from lib.errors import RecordError, UsageError

# Readers of the published files, and the embedded substitutes.
PUBLISHED = {
    "zsre": zsre.load, "counterfact": counterfact.load, "fever": fever.load, "nq": nq.load,
    "scotus": scotus.load, "hallucination": hallucination.load,
}  # fmt: skip
EMBEDDED = {
    "zsre": facts.qa, "counterfact": facts.cf, "fever": claims.load, "nq": facts.nq,
    "scotus": documents.load, "hallucination": passages.load,
}  # fmt: skip
# Embedded data that what the backbone knows has a say in.
SHAPED = ("zsre", "counterfact", "hallucination")
INVENTED = (
    "invented", "invented_statements", "invented_claims", "invented_documents", "invented_passages",
)  # fmt: skip
DATASETS = (*PUBLISHED, *INVENTED)
# To be classified; the others are questions and statements.
CLASSIFIED = ("fever", "scotus", "invented_claims", "invented_documents")


def load(
    dataset: str,
    *,
    data_dir: Path | None = None,
    strict: bool = True,
    limit: int | None = None,
    known: Knowledge | Likelihoods | None = None,
    seed: int = 0,
    variant: str | None = None,
    source: str | None = None,
) -> Dataset:
    """Edits and probes of a dataset (one of `DATASETS`), before any protocol orders them.
    "invented" and what begins with it are the smoke profile's handful of made-up questions,
    CounterFact-form statements, claims, documents and passages, whatever the other arguments.

    `data_dir`: folder with sub-folders zsre/, counterfact/, … holding published files (`variant`
    picks one of several). Without it: the embedded substitute, built from packages; `source="hub"`
    (or STUDY_DATA_SOURCE=hub) reads the published data from the model hub instead, for datasets
    without a sub-folder of `data_dir` too. `strict`:
    stop at a malformed record; otherwise leave it out and list it in `skipped`. `limit`: number of
    edits (of questions for "nq"). `known` and `seed` shape the embedded data only: for "zsre"
    edits are facts the backbone gets wrong, for "counterfact" facts it knows, for "hallucination"
    (`Likelihoods`) sentences it finds unlikely.

    Raises UsageError for an unknown name, RecordError for unreadable files, AssetError if a
    package cannot be had.
    """
    if dataset not in DATASETS:
        raise UsageError(f"there is no dataset {dataset!r}; known: {', '.join(DATASETS)}.")
    if limit is not None and limit < 1:
        raise UsageError(f"limit must be at least 1, not {limit}.")
    if dataset in INVENTED:
        return _cut(invented.load(dataset), limit)
    source = source or os.environ.get("STUDY_DATA_SOURCE") or "embedded"
    if source not in ("embedded", "hub"):
        raise UsageError(f"there is no data source {source!r}; known: embedded, hub.")
    is_given = data_dir is not None and (Path(data_dir) / dataset).is_dir()
    if source == "hub" and not is_given:
        return _cut(hub.load(dataset, variant=variant, strict=strict), limit)
    if data_dir is not None:
        return _cut(_published(dataset, Path(data_dir), variant, strict), limit)
    if variant is not None:
        raise UsageError("variant picks one of several published files; give --data-dir too.")
    shape = {"known": known} if dataset in SHAPED else {}
    return EMBEDDED[dataset](limit=limit, seed=seed, **shape)


def _published(dataset: str, data_dir: Path, variant: str | None, strict: bool) -> Dataset:
    folder = data_dir / dataset
    if not folder.is_dir():
        raise RecordError(
            f"{data_dir} has no folder {dataset}/. Point --data-dir at the folder that holds "
            f"{dataset}/ beside the other datasets, or leave it out to use the embedded substitute."
        )
    return PUBLISHED[dataset](folder, variant=variant, strict=strict)


def _cut(found: Dataset, limit: int | None) -> Dataset:
    """The first `limit` edits, or the first `limit` questions of a dataset without edits."""
    if limit is None:
        return found
    if found.edits:
        return dataclasses.replace(found, edits=found.edits[:limit])
    return dataclasses.replace(found, upstream=found.upstream[:limit])
