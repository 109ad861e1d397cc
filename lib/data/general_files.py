"""The eight general tasks of ELDER's Tables 7 to 10 from their published files (elder 4 and 5).

`folder` is `general/` of the data folder; each task has a sub-folder with the first of these
files that is there, plain or gzip (mutual: plain):

* gsm8k: test.jsonl (question, answer with "#### 18" at its end);
* rte: train.tsv, dev.tsv or the same as .jsonl (GLUE's sentence1, sentence2, label, or SuperGLUE's
  premise, hypothesis, label); the train split comes first because the benchmark's size says so;
* nq: nq.jsonl, nq-test.jsonl or test.json, questions with retrieved passages (question, answer or
  answers, ctxs: [{title, text}, ...] or passages: [text, ...]);
* boolq: dev.jsonl (question, passage, answer true or false);
* mutual: dev/*.txt, one JSON object each (article, options, answers "A" to "D");
* samsum: val.json or test.json (dialogue, summary);
* conll03: test.txt or eng.testb (token first and tag last on a line, a blank line after a
  sentence; tags as IOB1 or IOB2);
* sst2: dev.tsv or dev.jsonl (sentence, label 0 or 1).

The prompts hold what the benchmark's public scripts put in, in words of ours, and no example.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lib.data import reading
from lib.data.reading import Row, text
from lib.errors import RecordError

FOLDER = "general"
ENTITIES = {"PER": "person", "LOC": "location", "ORG": "organization", "MISC": "miscellaneous"}
LETTERS = "ABCD"


@dataclass(frozen=True)
class Question:
    """One prompt and what its answer is held against; `group` is the type of entity (CoNLL03)."""

    prompt: str
    gold: tuple[str, ...]
    group: str = ""


def _gsm8k(row: Row) -> Question:
    """The gold solution stands in the prompt; only its number is asked."""
    solution, mark, number = text(row, "answer").partition("####")
    if not mark or not number.strip():
        raise RecordError("the answer does not end in '#### number'")
    prompt = (
        f"Q: {text(row, 'question')}\nA: We go step by step. {solution.strip()}\n"
        "So, in Arabic numerals, the answer is"
    )
    return Question(prompt, (number.strip().replace(",", ""),))


def _rte(row: Row) -> Question:
    names = ("premise", "hypothesis") if "premise" in row else ("sentence1", "sentence2")
    first, second = (text(row, name).strip() for name in names)
    label = text(row, "label").strip().lower()
    entailed = {"entailment": "true", "0": "true", "not_entailment": "false", "1": "false"}
    if label not in entailed:
        raise RecordError(f"the label {label!r} is none of {', '.join(entailed)}")
    prompt = f"'{first}' entails the sentence '{second}'. True or false?\nanswer:"
    return Question(prompt, (entailed[label],))


def _nq(row: Row) -> Question:
    passages = row.get("ctxs", row.get("passages"))
    if not isinstance(passages, list) or not passages:
        raise RecordError("the field 'ctxs' (or 'passages') is no list of passages")
    first = passages[0]
    passage = text(first, "text") if isinstance(first, dict) else reading.as_text(first, "passages")
    answers = reading.texts(row, "answers" if "answers" in row else "answer")
    if not answers:
        raise RecordError("the record has no answer")
    prompt = f"Find the answer in the passage.\n\n{passage}\n\n{text(row, 'question')}"
    return Question(prompt, answers)


def _boolq(row: Row) -> Question:
    if not isinstance(row.get("answer"), bool):
        raise RecordError("the field 'answer' is not true or false")
    prompt = (
        "Read the passage and answer the question with exactly yes or no.\n"
        f"passage: {text(row, 'passage')}\nquestion: {text(row, 'question')}?\nanswer:"
    )
    return Question(prompt, ("yes" if row["answer"] else "no",))


def _mutual(row: Row) -> Question:
    options, letter = reading.texts(row, "options"), text(row, "answers").strip()
    if len(options) != len(LETTERS) or letter not in LETTERS:
        raise RecordError("a dialogue needs four options and an answer from A to D")
    listed = "\n".join(f"{name}. {option}" for name, option in zip(LETTERS, options, strict=True))
    prompt = f"{text(row, 'article')}\n\n{listed}\n\nOf these options, the answer is"
    return Question(prompt, (letter,))


def _samsum(row: Row) -> Question:
    return Question(f"{text(row, 'dialogue')}\nTL;DR:", (text(row, "summary"),))


def _sst2(row: Row) -> Question:
    label = {"0": "negative", "1": "positive"}.get(text(row, "label").strip())
    if label is None:
        raise RecordError("the label is neither 0 nor 1")
    prompt = (
        "Is the text positive or negative? Answer with exactly one of the two words.\n"
        f"text: {text(row, 'sentence').strip()}\nanswer:"
    )
    return Question(prompt, (label,))


def _conll03(path: Path) -> list[Question]:
    """One prompt for each type of entity that a sentence holds: recall asks about no other."""
    found = []
    for words, tags in _sentences(path):
        entities = spans(words, tags)
        for kind, name in ENTITIES.items():
            gold = tuple(entity for entity, of in entities if of == kind)
            if gold:
                prompt = f"Sentence: {' '.join(words)}\nEntities of type {name} in the sentence:"
                found.append(Question(prompt, gold, kind))
    if not found:
        raise RecordError(f"{path} holds no sentence with entities")
    return found


def _sentences(path: Path) -> Iterator[tuple[list[str], list[str]]]:
    words: list[str] = []
    tags: list[str] = []
    for number, line in enumerate([*reading.lines(path), ""], start=1):
        cells = line.split()
        if cells and cells[0] != "-DOCSTART-":
            if len(cells) < 2:
                raise RecordError(f"{path}, line {number}: a token without a tag")
            words.append(cells[0])
            tags.append(cells[-1])
        elif words:
            yield words, tags
            words, tags = [], []


def spans(words: list[str], tags: list[str]) -> list[tuple[str, str]]:
    """(text, type) of every entity. Unlike the public script's, an entity keeps its last word at
    the sentence's end, and one that begins right behind another of its type is its own."""
    found: list[tuple[list[str], str]] = []
    before = "O"
    for word, tag in zip(words, tags, strict=True):
        mark, _, kind = tag.partition("-")
        if kind and (mark == "B" or before.partition("-")[2] != kind):
            found.append(([word], kind))
        elif kind:
            found[-1][0].append(word)
        before = tag
    return [(" ".join(parts), kind) for parts, kind in found]


def _mutual_files(folder: Path) -> list[Question]:
    paths = sorted((folder / "dev").glob("*.txt"))
    if not paths:
        raise RecordError(f"{folder}/dev holds no *.txt file. Origin: {ORIGINS['mutual']}.")
    found = []
    for path in paths:
        row = reading.document(path)
        try:
            found.append(_mutual(row if isinstance(row, dict) else {}))
        except RecordError as error:
            raise RecordError(f"{path}: {error}") from error
    return found


FILES: dict[str, tuple[tuple[str, ...], Callable[[Row], Question]]] = {
    "gsm8k": (("test.jsonl",), _gsm8k),
    "rte": (("train.tsv", "train.jsonl", "dev.tsv", "dev.jsonl", "val.jsonl"), _rte),
    "nq": (("nq.jsonl", "nq-test.jsonl", "test.json"), _nq),
    "boolq": (("dev.jsonl",), _boolq),
    "samsum": (("val.json", "test.json"), _samsum),
    "sst2": (("dev.tsv", "dev.jsonl"), _sst2),
}
ORIGINS = {
    "gsm8k": "the GSM8K repository",
    "rte": "GLUE or SuperGLUE",
    "nq": "Natural Questions with retrieved passages, as DPR and FiD write them",
    "boolq": "the BoolQ repository",
    "mutual": "the MuTual repository",
    "samsum": "the SAMSum corpus",
    "conll03": "the CoNLL-2003 shared task",
    "sst2": "GLUE",
}


def questions(task: str, folder: Path, *, strict: bool = True) -> list[Question]:
    """All prompts of a task (a key of ORIGINS), in file order.

    `strict`: the first malformed record is a RecordError, otherwise it is left out (JSON and TSV
    only). Raises RecordError for missing or unreadable files.
    """
    own = folder / task
    if task == "mutual":
        return _mutual_files(own)
    if task == "conll03":
        return _conll03(reading.require(own, ("test.txt", "eng.testb"), ORIGINS[task]))
    names, convert = FILES[task]
    path = reading.require(own, names, ORIGINS[task])
    return reading.collect(path, lambda row, _: convert(row), strict=strict)[0]
