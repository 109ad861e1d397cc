"""The published datasets from the model hub, through `datasets`, into the published readers.

Rows are converted by the same functions that read files; only their transport differs. What is not
on the hub its authors offer elsewhere (`ELSEWHERE`).
"""

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from lib.data.published import counterfact, hallucination, nq, scotus, zsre
from lib.data.records import Dataset
from lib.errors import RecordError
from lib.storage.hub import explained

Rows = Iterator[dict[str, object]]


@dataclass(frozen=True)
class Table:
    """Rows on the hub: repository, split, the file under whose name the reader knows their form;
    one file or one configuration of the repository, where it has several, and the revision."""

    repository: str
    split: str
    file: str
    data_file: str | None = None
    configuration: str | None = None
    revision: str = "main"

    def load(self, *, streaming: bool = False) -> Rows:
        """The rows; `streaming`: one after the other as they arrive, none is stored. A RecordError
        says why they cannot be read."""
        try:
            import datasets

            yield from datasets.load_dataset(
                self.repository,
                self.configuration,
                data_files=self.data_file,
                split=self.split,
                revision=self.revision,
                streaming=streaming,
            )
        except Exception as error:  # the library raises anything from OSError to its own kinds
            why = explained(error, self.repository)
            raise RecordError(
                f"{self.repository} cannot be read from the hub ({why}). Check the network, or "
                "give the published files with --data-dir."
            ) from why


@dataclass(frozen=True)
class Source:
    """A dataset on the hub: its tables, their reader, and for which variants they stand (None: for
    a setting that names none)."""

    tables: tuple[Table, ...]
    read: Callable[..., Dataset]
    variants: tuple[str | None, ...] = (None,)


@dataclass(frozen=True)
class File:
    """A file that its authors offer, under the name that a reader looks for in a dataset's folder:
    the address of the file, or of the page that links to it, and how many records it holds (None:
    unknown here). None of them comes with a checksum."""

    name: str
    address: str
    records: int | None = None

    @property
    def is_linked(self) -> bool:
        """Whether the address is a page's, which links to the file."""
        return not self.address.endswith(self.name)

    def fetched(self, dataset: str) -> str:
        """How to get it into the folder of a dataset, for a shell or in words."""
        if self.is_linked:
            return f"put {self.name} into DIR/{dataset}/ (linked from {self.address})"
        return f"curl -L --create-dirs -o DIR/{dataset}/{self.name} {self.address}"


SOURCES: dict[str, Source] = {
    "zsre": Source(
        (
            Table(
                "zjunlp/KnowEdit", "train", "ZsRE-test-all.json",
                data_file="benchmark/ZsRE/ZsRE-test-all.json",
            ),
        ),
        zsre.load,
        (None, "knowedit", "eval"),
    ),
    "counterfact": Source(
        (Table("azhx/counterfact", "train", "counterfact.json"),),
        counterfact.load,
        (None, *counterfact.VARIANTS),
    ),
    "nq": Source(
        (Table("google-research-datasets/nq_open", "validation", "NQ-open.dev.jsonl"),),
        nq.load,
        (None, "dev"),
    ),
    "scotus": Source(
        (
            Table("tomh/grace-scotus", "train", "train.jsonl"),
            Table("tomh/grace-scotus", "test", "test.jsonl"),
        ),
        scotus.load,
        (None, "grace"),
    ),
    "hallucination": Source(
        (
            Table(
                "potsawee/wiki_bio_gpt3_hallucination", "evaluation",
                "wiki_bio_gpt3_hallucination.jsonl",
            ),
            # At main this repository holds a script, which `datasets` no longer runs.
            Table(
                "stas/openwebtext-10k", "train[:1000]", "openwebtext_10k.jsonl",
                revision="refs/convert/parquet",
            ),
        ),
        hallucination.load,
        (None, "passages"),
    ),
}  # fmt: skip
WIKIPEDIA = Table("wikimedia/wikipedia", "train", "wikipedia.jsonl", configuration="20231101.en")

_MEND = "https://github.com/eric-mitchell/mend"
_ROME = "https://rome.baulab.info/data/dsets"
_EASYEDIT = (
    "https://raw.githubusercontent.com/leonz-z/EasyEdit/5d49c472bd4b8447a70d276fb577d28088588e62"
    "/dataset/edit_data"
)
_PORTABILITY = "counterfact_portability_gpt4.json"
# Addresses are those of the authors' code, tried from nowhere without a network. By dataset and
# variant; None: what a setting that names no variant reads.
ELSEWHERE: dict[tuple[str, str | None], File] = {
    ("zsre", None): File("structured_zeroshot-train-new_annotated_final.jsonl", _MEND),
    ("zsre", "train"): File("zsre_mend_train.json", f"{_ROME}/zsre_mend_train.json", 163196),
    ("zsre", "eval"): File("zsre_mend_eval.json", f"{_ROME}/zsre_mend_eval.json", 19086),
    ("fever", "train"): File("fever-train-kilt.jsonl", _MEND, 104996),
    ("fever", None): File("fever-dev-kilt.jsonl", _MEND, 10444),
    ("fever", "dev"): File("fever-dev-kilt.jsonl", _MEND, 10444),
    ("counterfact", None): File("counterfact.json", f"{_ROME}/counterfact.json", 21919),
    ("counterfact", "rome"): File(
        _PORTABILITY, f"{_EASYEDIT}/portability/{quote('One Hop')}/{_PORTABILITY}", 1031
    ),
    ("counterfact", "train"): File(
        "counterfact-train.json", f"{_EASYEDIT}/counterfact/counterfact-train.json", 10000
    ),
}


def load(dataset: str, *, variant: str | None = None, strict: bool = True) -> Dataset:
    """The dataset from the hub; a RecordError says what was tried if it cannot be reached, and
    where its authors offer what is not there."""
    source = SOURCES.get(dataset)
    if source is None or variant not in source.variants:
        what = f"{dataset} ({variant})" if variant else dataset
        file = ELSEWHERE.get((dataset, variant), ELSEWHERE.get((dataset, None)))
        counted = f" ({file.records:,} records)" if file and file.records else ""
        remedy = (
            f"Give its authors' file{counted} with --data-dir DIR: {file.fetched(dataset)}"
            if file
            else f"Give its published files with --data-dir, in a sub-folder {dataset}/."
        )
        raise RecordError(f"{what} is not on the hub in a form with all that is needed. {remedy}")
    with tempfile.TemporaryDirectory() as scratch:
        for table in source.tables:
            path = Path(scratch) / table.file
            lines = [json.dumps(row, ensure_ascii=False, default=str) for row in _rows(table)]
            # A .json name holds an array, a .jsonl name one object a line.
            array = path.suffix == ".json"
            path.write_text("[" + ",\n".join(lines) + "]" if array else "\n".join(lines), "utf-8")
        found = source.read(Path(scratch), strict=strict)
    first = source.tables[0]
    return replace(found, sources=(f"{first.repository} ({first.data_file or first.split})",))


def _rows(table: Table) -> list[dict[str, object]]:
    return [dict(row) for row in table.load()]
