"""MultiEmo-shift, the embedded documents: reviews of hotels to learn, of other things to edit.

Four sentiments as class numbers. The reviews are machine translations from Polish, from four tasks
of BIG-bench; what shifts is the domain and the share of the classes.
"""

from collections.abc import Iterator, Sequence

from lib.data.embedded import bigbench
from lib.data.order import place
from lib.data.published.scotus import document
from lib.data.records import Dataset, Edit, Probe
from lib.errors import RecordError
from lib.storage import archives

LEARNED = ("hotels",)
EDITED = ("medicine", "products", "reviews")  # the last: of university courses
CLASSES = ("ambivalent", "negative", "neutral", "positive")


def load(*, limit: int | None = None, seed: int = 0) -> Dataset:
    """Edits: the documents of the other three domains, all of them, in seeded order (the first
    `limit`). `upstream`: all hotel documents in seeded order; a setting's `tune` says how many of
    them its classifier learns.

    Raises AssetError if the archive cannot be had.
    """
    return Dataset(
        name="MultiEmo-shift",
        edits=tuple(_documents(EDITED, seed)[:limit]),
        upstream=tuple(
            Probe(edit.identity, edit.prompt, edit.target, "upstream")
            for edit in _documents(LEARNED, seed)
        ),
        sources=(f"bigbench {archives.ASSETS['bigbench'].version}",),
        substitution=(
            "Reviews with four sentiments (MultiEmo, from BIG-bench tasks) stand in for SCOTUS "
            "documents with their topics: hotels are learned, medicine, products and university "
            "courses are edited, so the domain shifts instead of the decade."
        ),
    )


def _documents(domains: Sequence[str], seed: int) -> list[Edit]:
    found = [edit for domain in domains for edit in _domain(domain)]
    return sorted(found, key=lambda edit: (place(seed, "reviews", edit.identity), edit.identity))


def _domain(domain: str) -> Iterator[Edit]:
    for number, row in enumerate(bigbench.rows(f"multiemo_{domain}")):
        text, label = str(row["text"]).strip(), str(row["label"])
        if label not in CLASSES:
            raise RecordError(f"multiemo_{domain}, row {number}: unknown sentiment {label!r}")
        if text:  # one review of a course is empty
            yield document(f"{domain}:{number}", text, str(CLASSES.index(label)))
