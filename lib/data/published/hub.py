"""The published datasets from the model hub, through `datasets`, into the published readers.

Rows are converted by the same functions that read files; only their transport differs.
"""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from lib.data.published import counterfact, hallucination, nq, scotus, zsre
from lib.data.records import Dataset
from lib.errors import RecordError


@dataclass(frozen=True)
class Source:
    """One dataset on the hub: repository, file or configuration, split, and its reader.

    `file` is the name under which the reader knows the form of these rows; `more` are further
    splits that it reads (repository, split, file).
    """

    repository: str
    data_file: str | None
    split: str
    file: str
    read: Callable[..., Dataset]
    more: tuple[tuple[str, str, str], ...] = ()


SOURCES: dict[str, Source] = {
    "zsre": Source(
        "zjunlp/KnowEdit", "benchmark/ZsRE/ZsRE-test-all.json", "train", "ZsRE-test-all.json",
        zsre.load,
    ),
    "counterfact": Source("azhx/counterfact", None, "train", "counterfact.json", counterfact.load),
    "nq": Source(
        "google-research-datasets/nq_open", None, "validation", "NQ-open.dev.jsonl", nq.load
    ),
    "scotus": Source(
        "tomh/grace-scotus", None, "train", "train.jsonl", scotus.load,
        more=(("tomh/grace-scotus", "test", "test.jsonl"),),
    ),
    "hallucination": Source(
        "potsawee/wiki_bio_gpt3_hallucination", None, "evaluation",
        "wiki_bio_gpt3_hallucination.jsonl", hallucination.load,
        more=(("stas/openwebtext-10k", "train[:1000]", "openwebtext_10k.jsonl"),),
    ),
}  # fmt: skip


def load(dataset: str, *, strict: bool = True) -> Dataset:
    """The dataset from the hub; a RecordError says what was tried if it cannot be reached."""
    if dataset not in SOURCES:
        raise RecordError(
            f"{dataset} is not read from the hub: it lacks the rephrases. Give the annotated files "
            f"with --data-dir, in a sub-folder {dataset}/."
        )
    source = SOURCES[dataset]
    with tempfile.TemporaryDirectory() as scratch:
        for repository, split, file in (
            (source.repository, source.split, source.file), *source.more,
        ):  # fmt: skip
            path = Path(scratch) / file
            rows = _rows(replace(source, repository=repository, split=split))
            lines = [json.dumps(row, ensure_ascii=False, default=str) for row in rows]
            # A .json name holds an array, a .jsonl name one object a line.
            array = path.suffix == ".json"
            path.write_text("[" + ",\n".join(lines) + "]" if array else "\n".join(lines), "utf-8")
        found = source.read(Path(scratch), strict=strict)
    where = f"{source.repository} ({source.data_file or source.split})"
    return replace(found, sources=(where,))


def _rows(source: Source) -> list[dict[str, object]]:
    try:
        import datasets

        table = datasets.load_dataset(
            source.repository, data_files=source.data_file, split=source.split
        )
    except Exception as error:  # the library raises anything from OSError to its own kinds
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RecordError(
            f"{source.repository} cannot be read from the hub ({first}). Check the network, give "
            "the published files with --data-dir, or use the embedded substitute."
        ) from error
    return [dict(row) for row in table]
