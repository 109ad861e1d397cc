"""Passage-next, from packages alone: the next sentence of a Wikipedia paragraph, given its title.

The substitute for corrected biographies: a sentence that the backbone finds unlikely is edited in,
likely sentences of other articles should stay likely, and so should news text.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from urllib.parse import unquote

from lib.data.embedded import bigbench
from lib.data.embedded.known import Likelihoods
from lib.data.order import place
from lib.data.published.hallucination import continuation, sentences
from lib.data.records import Dataset, Edit, Probe
from lib.errors import RecordError
from lib.storage.archives import ASSETS

NAME = "Passage-next"
PROMPT = "This is a passage about {title}. {before}"
REPHRASE = "The following text is about {title}. {before}"
WORDS = (6, 26)  # fewest and most in a usable sentence
RUN = 4  # sentences of a paragraph in a row: as many as MELO edits at once (melo 3)
FINE = 0.25  # share of articles whose likely sentences are the ones to keep
SURPRISING = 25.0  # perplexity above which a sentence is edited
TEXT_WORDS = 48


@cache
def candidates(seed: int = 0) -> tuple[Edit, ...]:
    """Every usable sentence as an edit behind its title and the sentence before, in seeded order:
    `RUN` of one paragraph in a row, then another article's. `relation` is the title."""
    by_title: dict[str, list[list[Edit]]] = defaultdict(list)
    for kind in ("new_wiki", "squad"):
        for number, row in enumerate(bigbench.rows(kind)):
            title = re.sub(r"\s+", " ", unquote(str(row["title"])).replace("_", " ")).strip()
            found = list(_sentences(f"{kind}:{number}", title, str(row["text"])))
            by_title[title] += [found[at : at + RUN] for at in range(0, len(found), RUN)]
    titles = sorted(by_title, key=lambda title: (place(seed, "title", title), title))
    for runs in by_title.values():
        runs.sort(key=lambda run: place(seed, "paragraph", run[0].identity))
    turns = range(max(map(len, by_title.values()), default=0))
    return tuple(
        edit
        for turn in turns
        for title in titles
        for edit in (by_title[title][turn] if turn < len(by_title[title]) else ())
    )


def load(*, limit: int | None = None, known: Likelihoods | None = None, seed: int = 0) -> Dataset:
    """Passage-next: edits, `near` probes (sentences of articles that no edit is about) and news
    text as `upstream`. With `known`, edits are the sentences read that have a perplexity above
    `SURPRISING`, and the likeliest probes come first; without it all sentences, in their order.

    Each edit brings its prompt in other words as a rephrase: for what an editor is trained on.
    `limit`: most edits. Raises RecordError without any.
    """
    found = candidates(seed)
    fine = {t for t in {e.relation for e in found} if place(seed, "fine", t) < FINE * 2**64}
    edits = [edit for edit in found if edit.relation not in fine]
    others = [edit for edit in found if edit.relation in fine]
    if known is not None:
        edits = [edit for edit in edits if (known.perplexity(edit) or 0) > SURPRISING]
        others = [edit for edit in others if known.perplexity(edit) is not None]
        others.sort(key=lambda edit: known.perplexity(edit))
    if not edits:
        raise RecordError(f"{NAME} has no usable sentence among those read; raise `known`")
    chosen = (
        f" Edits have a perplexity above {SURPRISING:g} before editing, accurate sentences the "
        f"lowest of {len(others)} read."
        if known is not None
        else ""
    )
    return Dataset(
        name=NAME,
        edits=tuple(edits[:limit]),
        near=tuple(Probe(e.identity, e.prompt, e.target, "near") for e in others),
        upstream=tuple(_news(seed)),
        sources=(f"bigbench {ASSETS['bigbench'].version}",),
        substitution=(
            "Sentences of Wikipedia paragraphs, behind the title and the sentence before, stand in "
            f"for corrected biographies; paragraphs of news for web text.{chosen}"
        ),
    )


def _sentences(identity: str, title: str, text: str) -> Iterator[Edit]:
    parts = sentences(re.sub(r"\[[^\]]*\]", "", text))
    for j, (before, target) in enumerate(pairwise(parts), start=1):
        if all(WORDS[0] <= len(part.split()) <= WORDS[1] for part in (before, target)):
            yield Edit(
                f"passage:{identity}:{j}",
                PROMPT.format(title=title, before=before),
                target,
                title,
                rephrases=(REPHRASE.format(title=title, before=before),),
                relation=title,
            )


def _news(seed: int) -> Iterator[Probe]:
    """The beginning of one paragraph of each article that is long enough."""
    rows = {str(row["title"]): str(row["text"]) for row in bigbench.rows("nyt")}
    for title in sorted(rows, key=lambda title: (place(seed, "news", title), title)):
        probe = continuation(f"nyt:{place(0, 'id', title):016x}", rows[title], TEXT_WORDS)
        if probe is not None and len(rows[title].split()) >= TEXT_WORDS:
            yield probe
