"""What a backbone knows before any edit: which facts it answers, how likely it finds sentences.

One teacher-forced pass over prompts and answers. Each answer is stored the moment its batch is
done, in an append-only JSONL in the cache, so a killed pass goes on where it stopped and a second
one costs nothing.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from tqdm import tqdm

from lib.backbones.backbone import Backbone
from lib.backbones.encoding import prompt_ids, target_ids
from lib.backbones.passes.logits import TargetScores, prepare_whole, score_whole
from lib.backbones.passes.prefix import FrozenPrefix
from lib.data.embedded.known import Answer, Knowledge, Likelihoods
from lib.data.embedded.triples import Fact
from lib.data.records import Edit
from lib.errors import BackboneError, UsageError
from lib.storage import fingerprints
from lib.storage.cache import Cache
from lib.storage.fingerprints import content_hash

FORMS = {"causal": ("canonical", "question"), "seq2seq": ("bare",)}
_UNCASED = ("question", "bare")  # an answer may start a line, so case is not compared
_UNITS = 256  # facts x forms between two writes
_TOKENS = 4096  # in one forward pass


def known_facts(
    backbone: Backbone,
    facts: Sequence[Fact],
    *,
    cap: int | None,
    forms: Sequence[str] | None = None,
) -> Knowledge:
    """Ask `backbone` about the first `cap` facts (all for None) in each of `forms`.

    Forms are those of `relations.FORMS`; by default "canonical" and "question" for causal
    backbones (the question stands behind two solved examples), "bare" for seq2seq. Questions are
    compared without case. Objects of all `facts` count for the typed hit, also beyond the cap.
    """
    kind = backbone.family.kind
    if kind not in FORMS:
        raise BackboneError(
            f"{backbone.name} is a {kind}: it cannot be asked for facts. Use a causal or "
            "seq2seq backbone."
        )
    forms = tuple(forms or FORMS[kind])
    if cap is not None and cap < 1:
        raise UsageError(f"the cap on facts must be at least 1, not {cap}.")
    asking = _Pass(backbone, facts)
    units = [(fact, form) for fact in facts[:cap] for form in forms]
    keys = {(fact.identity, form): asking.key(fact, form) for fact, form in units}
    of_key = {keys[fact.identity, form]: (fact, form) for fact, form in units}

    def ask(missing: list[str]) -> Iterator[dict[str, Any]]:
        for batch in asking.run([of_key[key] for key in missing]):
            yield {keys[fact.identity, form]: vars(answer) for (fact, form), answer in batch}

    stored = Cache.user().lines("knowledge", _identity(backbone), of_key, ask)
    answers: dict[str, dict[str, Answer]] = {}
    for (identity, form), key in keys.items():
        answers.setdefault(identity, {})[form] = Answer(**stored[key])
    return Knowledge(answers, forms, asking.first_tokens)


def _identity(backbone: Backbone) -> list[object]:
    """What decides every line beside its key."""
    return [
        backbone.arithmetic,
        fingerprints.own(__name__),
        fingerprints.code("lib.backbones.passes.logits", apart=fingerprints.TOLD),
    ]


class _Pass:
    """Teacher-forced scoring of facts with one backbone; holds tokens, not answers."""

    def __init__(self, backbone: Backbone, facts: Iterable[Fact]) -> None:
        self.backbone = backbone
        objects = defaultdict(set)
        for fact in facts:
            objects[fact.relation].update(fact.objects)
        self._objects = {
            value: self._object_ids(value) for value in sorted(set().union(*objects.values()))
        }
        self.first_tokens = {value: ids[0] for value, ids in self._objects.items()}
        self._typed = {
            name: sorted({self.first_tokens[value] for value in values})
            for name, values in objects.items()
        }

    def key(self, fact: Fact, form: str) -> str:
        """Names everything an answer depends on besides the weights."""
        return content_hash([form, fact.prompt(form), fact.objects, self._typed[fact.relation]])[
            :32
        ]

    def _object_ids(self, value: str) -> list[int]:
        ids = target_ids(self.backbone, value)
        return ids[:-1] if ids[-1] == self.backbone.eos_id else ids  # the end mark is not asked

    def run(
        self, units: Sequence[tuple[Fact, str]]
    ) -> Iterator[list[tuple[tuple[Fact, str], Answer]]]:
        """Answers of `units` in pieces; pieces hold prompts of like length."""
        if not units:
            return
        prompts = [prompt_ids(self.backbone, fact.prompt(form)) for fact, form in units]
        order = sorted(range(len(units)), key=lambda i: (len(prompts[i]), i))
        with tqdm(total=len(units), desc="knowledge pass", unit="prompt", disable=None) as bar:
            for start in range(0, len(order), _UNITS):
                piece = order[start : start + _UNITS]
                scored = self._piece([units[i] for i in piece], [prompts[i] for i in piece])
                yield list(zip([units[i] for i in piece], scored, strict=True))
                bar.update(len(piece))

    def _piece(self, units: list[tuple[Fact, str]], prompts: list[list[int]]) -> list[Answer]:
        """One Answer per unit; rows of one exact length go together, so nothing is padded."""
        groups = defaultdict(list)
        for number, ((fact, _), prompt) in enumerate(zip(units, prompts, strict=True)):
            for value in fact.objects:
                target = self._objects[value]
                groups[len(prompt), len(target)].append((number, prompt, target))
        firsts: dict[int, tuple[bool, str, bool]] = {}
        full = [False] * len(units)
        for (length, width), rows in sorted(groups.items()):
            step = max(1, _TOKENS // (length + width))
            for start in range(0, len(rows), step):
                part = rows[start : start + step]
                logits = self._logits([row[1] for row in part], [row[2] for row in part])
                best = logits.argmax(dim=-1).tolist()
                for (number, _, target), row, argmax in zip(part, logits, best, strict=True):
                    fact, form = units[number]
                    uncased = form in _UNCASED
                    full[number] |= self._same(argmax, target, uncased)
                    if number not in firsts:
                        firsts[number] = self._first(fact, row[0], argmax[0], uncased)
        return [Answer(firsts[i][0], full[i], *firsts[i][1:]) for i in range(len(units))]

    def _first(
        self, fact: Fact, logits: torch.Tensor, top: int, uncased: bool
    ) -> tuple[bool, str, bool]:
        accepted = [self.first_tokens[value] for value in fact.objects]
        options = self._typed[fact.relation]
        typed = options[int(logits[options].argmax())]
        hit = any(self._same([top], [token], uncased) for token in accepted)
        return hit, self.backbone.tokenizer.decode([top]), typed in accepted

    def _same(self, ids: list[int], target: list[int], uncased: bool) -> bool:
        if ids == target:
            return True
        if not uncased:
            return False
        decode = self.backbone.tokenizer.decode
        left = [decode([i]).casefold() for i in ids]
        right = [decode([i]).casefold() for i in target]
        return [left[0].strip(), *left[1:]] == [right[0].strip(), *right[1:]]

    def _logits(self, prompts: list[list[int]], targets: list[list[int]]) -> torch.Tensor:
        """Logits [rows, target tokens, vocabulary] that predict each target token."""
        bb = self.backbone
        width = len(targets[0])
        with torch.inference_mode():
            if bb.family.kind == "seq2seq":
                start = bb.model.config.decoder_start_token_id
                start = bb.pad_id if start is None else start
                decoder = torch.tensor([[start, *ids[:-1]] for ids in targets], device=bb.device)
                ids = torch.tensor(prompts, device=bb.device)
                out = bb.model(input_ids=ids, decoder_input_ids=decoder, use_cache=False).logits
                return out[:, :width].float()
            rows = [p + t[:-1] for p, t in zip(prompts, targets, strict=True)]
            ids = torch.tensor(rows, device=bb.device)
            hidden = bb.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
            # Flat: for a slice of bfloat16 PyTorch takes 100 times as long on a CPU, and gigabytes.
            flat = hidden[:, -width:].reshape(-1, hidden.shape[-1])
            return bb.model.get_output_embeddings()(flat).view(len(rows), width, -1).float()


_ROWS = 8  # in one pass


def likelihoods(backbone: Backbone, edits: Sequence[Edit], *, cap: int) -> Likelihoods:
    """Read the first `cap` of `edits`: how likely each target is behind its prompt."""
    keys = {edit.identity: content_hash([edit.prompt, edit.target])[:32] for edit in edits[:cap]}
    asked = {keys[edit.identity]: edit for edit in edits[:cap]}

    def read(missing: list[str]) -> Iterator[dict[str, float]]:
        rows = [asked[key] for key in missing]
        rows.sort(key=lambda edit: (len(edit.prompt) + len(edit.target), edit.identity))
        for start in range(0, len(rows), _ROWS):
            piece = rows[start : start + _ROWS]
            found = zip(piece, _read(backbone, piece).nll, strict=True)
            yield {keys[edit.identity]: nll for edit, nll in found}

    stored = Cache.user().lines("likelihood", _identity(backbone), asked, read)
    return Likelihoods({identity: stored[key] for identity, key in keys.items()})


def answered(backbone: Backbone, edits: Sequence[Edit]) -> frozenset[str]:
    """The identities of the edits whose target the backbone gives already: each of its tokens is
    the first choice behind the prompt and the tokens before it."""
    keys = {edit.identity: content_hash([edit.prompt, edit.target])[:32] for edit in edits}
    asked = {keys[edit.identity]: edit for edit in edits}

    def read(missing: list[str]) -> Iterator[dict[str, bool]]:
        for start in range(0, len(missing), _ROWS):
            piece = missing[start : start + _ROWS]
            found = _read(backbone, [asked[key] for key in piece])
            right = (best == ids for best, ids in zip(found.argmax, found.ids, strict=True))
            yield dict(zip(piece, right, strict=True))

    stored = Cache.user().lines("answered", _identity(backbone), asked, read)
    return frozenset(identity for identity, key in keys.items() if stored[key])


def _read(backbone: Backbone, edits: Sequence[Edit]) -> TargetScores:
    prefix = FrozenPrefix(backbone, 0)
    prompts, targets = [edit.prompt for edit in edits], [edit.target for edit in edits]
    return score_whole(backbone, prefix, prepare_whole(backbone, prefix, prompts, targets))
