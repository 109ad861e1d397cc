"""What a backbone knows before any edit: which facts it answers, how likely it finds sentences.

One teacher-forced pass over prompts and answers. Each answer is stored the moment its batch is
done, in an append-only JSONL in the cache, so a killed pass goes on where it stopped and a second
one costs nothing.
"""

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from filelock import FileLock
from tqdm import tqdm

from lib.backbones.backbone import Backbone
from lib.backbones.encoding import prompt_ids, target_ids
from lib.backbones.passes.logits import prepare_whole, score_whole
from lib.backbones.passes.prefix import FrozenPrefix
from lib.data.embedded.known import Answer, Knowledge, Likelihoods
from lib.data.embedded.triples import Fact
from lib.data.records import Edit, content_hash
from lib.errors import BackboneError, UsageError
from lib.storage import archives

FORMS = {"causal": ("canonical", "question"), "seq2seq": ("bare",)}
_UNCASED = ("question", "bare")  # an answer may start a line, so case is not compared
_VERSION = 1  # of the pass; a change here asks everything again
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
    path = (
        archives.cache_dir()
        / "knowledge"
        / f"{backbone.content[:24]}-{str(backbone.dtype).removeprefix('torch.')}-v{_VERSION}.jsonl"
    )
    units = [(fact, form) for fact in facts[:cap] for form in forms]
    keys = {(fact.identity, form): asking.key(fact, form) for fact, form in units}
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.parent / f".{path.name}.lock"):  # another process may be asking the same
        stored = _stored(path)
        missing = [unit for unit in units if keys[unit[0].identity, unit[1]] not in stored]
        for batch in asking.run(missing):
            new = {keys[fact.identity, form]: answer for (fact, form), answer in batch}
            _append(path, new)
            stored.update(new)
    answers: dict[str, dict[str, Answer]] = {}
    for fact, form in units:
        answers.setdefault(fact.identity, {})[form] = stored[keys[fact.identity, form]]
    return Knowledge(answers, forms, asking.first_tokens)


def _stored(path: Path) -> dict[str, Answer]:
    """Answers in the file; a torn or foreign line is passed over and asked again."""
    found = {}
    if path.is_file():
        for line in path.read_bytes().split(b"\n"):
            try:
                row = json.loads(line)
                key = row.pop("key")
                found[key] = Answer(**row)
            except (ValueError, TypeError, KeyError, AttributeError):
                continue
    return found


def _append(path: Path, answers: dict[str, Answer]) -> None:
    """Add lines in one write, on a fresh line even if the last process died inside one."""
    text = "".join(
        json.dumps({"key": key, **vars(answer)}, ensure_ascii=False) + "\n"
        for key, answer in answers.items()
    )
    with open(path, "ab+") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                text = "\n" + text
        file.write(text.encode("utf-8"))
        file.flush()
        os.fsync(file.fileno())


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
        return content_hash(
            [form, fact.prompt(form), fact.objects, self._typed[fact.relation], self._prefix()]
        )[:32]

    def _prefix(self) -> str:
        return self.backbone.prefix

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
            out = bb.model(input_ids=ids, use_cache=False, logits_to_keep=width).logits
            return out[:, -width:].float()


_LIKELIHOOD_VERSION = 1  # of the pass; a change here reads everything again
_ROWS = 8  # in one pass


def likelihoods(backbone: Backbone, edits: Sequence[Edit], *, cap: int) -> Likelihoods:
    """Read the first `cap` of `edits`: how likely each target is behind its prompt."""
    asked = edits[:cap]
    keys = {e.identity: content_hash([backbone.prefix, e.prompt, e.target])[:32] for e in asked}
    dtype = str(backbone.dtype).removeprefix("torch.")
    name = f"{backbone.content[:24]}-{dtype}-v{_LIKELIHOOD_VERSION}.jsonl"
    path = archives.cache_dir() / "likelihood" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.parent / f".{name}.lock"):  # another process may be reading the same
        stored = _stored_likelihoods(path)
        missing = [edit for edit in asked if keys[edit.identity] not in stored]
        missing.sort(key=lambda edit: (len(edit.prompt) + len(edit.target), edit.identity))
        for start in range(0, len(missing), _ROWS):
            piece = missing[start : start + _ROWS]
            read = zip((keys[e.identity] for e in piece), _read(backbone, piece), strict=True)
            new = dict(read)
            stored.update(new)
            with open(path, "a", encoding="utf-8") as file:
                # On a fresh line, even if the last process died inside one.
                rows = (json.dumps({"key": key, "nll": nll}) for key, nll in new.items())
                file.write("\n" + "\n".join(rows) + "\n")
    return Likelihoods({edit.identity: stored[keys[edit.identity]] for edit in asked})


def _stored_likelihoods(path: Path) -> dict[str, float]:
    """Values in the file; an empty or torn line is passed over."""
    found = {}
    for line in path.read_text("utf-8", errors="replace").split("\n") if path.is_file() else ():
        try:
            row = json.loads(line)
            found[row["key"]] = float(row["nll"])
        except (ValueError, TypeError, KeyError):
            continue
    return found


def _read(backbone: Backbone, edits: Sequence[Edit]) -> list[float]:
    prefix = FrozenPrefix(backbone, 0)
    prompts, targets = [edit.prompt for edit in edits], [edit.target for edit in edits]
    return score_whole(backbone, prefix, prepare_whole(backbone, prefix, prompts, targets)).nll
