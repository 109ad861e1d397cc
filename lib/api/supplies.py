"""What an editor needs before its first edit: text, facts to learn from, caches; made once.

Default text and facts are the embedded ones. What takes long is announced with its time before, a
bar runs meanwhile, and the outcome stays in the study's cache (`lib.storage.cache`).
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch

from lib.backbones.backbone import Backbone
from lib.backbones.text_states import (
    add_documents,
    collected,
    document_length,
    key_width,
)
from lib.data import corpus, datasets
from lib.data.corpus import Corpus
from lib.data.records import Edit, Stream
from lib.data.streams import PromptStyle
from lib.data.training import TrainingFacts, training_facts
from lib.editors import needs_of
from lib.editors.base import Editor
from lib.errors import EditorError, RecordError
from lib.evaluation.timing import forward_seconds
from lib.runs.progress import clock
from lib.storage.cache import Cache
from lib.storage.fingerprints import content_hash

Text: TypeAlias = str | Sequence[str] | Corpus
"""Text for key statistics: a corpus by name ("new_wiki", "invented"), or documents."""
Lessons: TypeAlias = str | Sequence[Edit] | TrainingFacts
"""Facts to learn from: a dataset by name, or facts, each with a rephrase and a locality prompt
with its answer."""

TEXT = "new_wiki"
# By what the model does: the embedded facts that editors learn from.
TAUGHT = {"causal": "counterfact", "seq2seq": "zsre", "classifier": "fever"}
N_TRAIN, N_VALID = 128, 32
QUESTION = "Question: {}\nShort answer:"  # a bare question is answered with nothing
TIMED = 4  # documents, or facts, that a guess at the time is made from
PASSES = 5  # whole passes that a fact's three wordings cost, most of their blocks being frozen


def needs_lessons(kind: str) -> bool:
    """Whether an editor learns from facts before it edits."""
    return "training" in needs_of(kind)


def supplies(
    kind: str,
    backbone: Backbone,
    stream: Stream,
    text: Text | None,
    lessons: Lessons | None,
    *,
    learns: bool = True,
) -> dict[str, Any]:
    """Everything that `lib.editors.build` takes beside the configuration, for an editor's needs;
    no facts to learn from unless it `learns`."""
    needs = needs_of(kind)
    given: dict[str, Any] = dict.fromkeys(
        ("blocks_cache", "values_cache", "networks_cache"), Cache.user()
    )
    if "corpus" in needs:
        given["corpus"] = text_of(TEXT if text is None else text)
    if learns and needs_lessons(kind):
        given["training"] = lessons_of(backbone, stream, lessons)
    return given


def text_of(text: Text) -> Corpus:
    """A corpus by its name, or of the given documents."""
    if isinstance(text, Corpus):
        return text
    if isinstance(text, str):
        return corpus.load(text)
    documents = tuple(text)
    if not documents or not all(isinstance(one, str) and one.strip() for one in documents):
        raise RecordError("text for key statistics must be documents that are not empty")
    return Corpus(f"{len(documents)} documents of your own", documents)


def lessons_of(backbone: Backbone, stream: Stream, lessons: Lessons | None) -> TrainingFacts:
    """Facts that share nothing with those of `stream`, or the given ones as they are."""
    if isinstance(lessons, TrainingFacts):
        return lessons
    kind = backbone.family.kind
    if lessons is None or isinstance(lessons, str):
        name = TAUGHT[kind] if lessons is None else lessons
        records = datasets.load(name)
        if not records.upstream:
            records = replace(records, upstream=datasets.load("nq").upstream)
        total = len(records.edits)
        n_valid = min(N_VALID, total // 5)
        style = PromptStyle(upstream_template=QUESTION if kind == "causal" else "")
        n_train = min(N_TRAIN, total // 2)
        return training_facts(records, stream, n_train=n_train, n_valid=n_valid, style=style)
    facts = tuple(lessons)
    for fact in facts:
        if not (fact.rephrases and fact.locality and fact.locality[0].target):
            raise RecordError(
                f"{fact.identity}: a fact to learn from needs a rephrase and a locality prompt "
                "with its answer"
            )
    held_out = len(facts) // 5
    return TrainingFacts("facts of your own", facts[held_out:], facts[:held_out])


def announce(editor: Editor, kind: str, batch_size: int) -> None:
    """Say on standard error what the editor makes before its first edit, and about how long that
    takes on this machine; nothing where it is in the cache already."""
    told = _statistics(editor) or _training(editor, kind, batch_size)
    if told:
        what, seconds = told
        print(
            f"{editor.name} first {what}: about {clock(max(seconds, 1))}, once; kept in "
            f"{Cache.user().root}",
            file=sys.stderr,
        )


def _statistics(editor: Editor) -> tuple[str, float] | None:
    """Reading text, for editors with key statistics."""
    from lib.editors.locate.editor import LocateEditor

    if not isinstance(editor, LocateEditor) or not getattr(
        editor.config, "moment_adjustment", True
    ):
        return None
    backbone, sample, blocks = editor.backbone, editor.config.sample, editor.blocks
    if collected(backbone, blocks, editor.corpus, sample):
        return None
    device = backbone.device
    sums = {b: torch.zeros((key_width(backbone, b),) * 2, device=device) for b in blocks}
    began, some = time.perf_counter(), editor.corpus.texts[:TIMED]
    with torch.no_grad():
        count = add_documents(backbone, some, document_length(backbone, sample), sums)
    pace = (time.perf_counter() - began) / max(count, 1)
    what = f"reads {sample.tokens:,} tokens of {editor.corpus.name} for its key statistics"
    return what, pace * sample.tokens


def _training(editor: Editor, kind: str, batch_size: int) -> tuple[str, float] | None:
    """Learning from facts, for editors with trained networks."""
    facts = getattr(editor, "training", None)
    if facts is None:
        return None
    if not facts.train:
        raise EditorError(f"{editor.name} has no facts to learn from; give lessons=[...]")
    config, cache = editor.config, Cache.user()
    if kind == "serac":
        from lib.editors.memory import serac_training

        networks = serac_training.SeracNetworks(editor.backbone, config)
        name = serac_training.networks_key(networks, config, facts)
        if cache.place("networks", name).exists():
            return None
        steps = config.iterations * (1 + (config.trained_blocks == 0))
        what = f"trains a classifier and a counterfactual model on {len(facts.train)} facts"
    else:
        from lib.editors.hypernet.training import network_identity

        m = min(config.train_m or batch_size, len(facts.train))
        if cache.place("networks", network_identity(editor, m)).exists():
            return None
        steps = len(facts.train) * config.epochs + 2 * len(facts.valid)
        what = f"trains its network on {len(facts.train)} facts"
    prompts = [fact.prompt for fact in facts.train[:TIMED]]
    pass_seconds = forward_seconds(editor.backbone, prompts, repeats=1) / len(prompts)
    return what, pass_seconds * PASSES * steps


def stream_of(facts: Sequence[Edit], batch_size: int) -> Stream:
    """The facts as a stream: their rephrases, what must keep its answer, and what follows."""
    holdout, near, follows = [], [], []
    owners: dict[str, list[int]] = {"holdout": [], "near": [], "portability": []}
    for number, fact in enumerate(facts):
        for place, text in enumerate(fact.rephrases):
            wording = Edit(f"{fact.identity}#{place + 1}", text, fact.target, "")
            holdout.append(replace(wording, target_true=fact.target_true, relation=fact.relation))
        near += fact.locality
        follows += fact.portability
        owners["holdout"] += [number] * len(fact.rephrases)
        owners["near"] += [number] * len(fact.locality)
        owners["portability"] += [number] * len(fact.portability)
    return Stream(
        f"facts {content_hash(list(facts))[:8]}", tuple(facts), batch_size, tuple(holdout),
        near=tuple(near), portability=tuple(follows),
        owners={name: tuple(numbers) for name, numbers in owners.items()},
    )  # fmt: skip
