"""Every dataset of the study in its published form, as many invented records as asked for."""

import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.fake_hub.server import Repository

Rows = list[dict[str, Any]]
PLACES = ("Quill", "Brink", "Dove", "Marl", "Heron", "Ash", "Tern", "Sedge", "Kettle", "Fallow")
KINDS = ("Island", "Sound", "Point", "Bay", "Reach", "Holm", "Rock", "Ness", "Firth", "Head")
HARBOURS = ("Port Amsel", "Calder", "Tavik", "Selby", "Wick", "Dunmore", "Sandgate", "Lantern")


@dataclass(frozen=True)
class Fact:
    """One invented fact, with another answer and in other words."""

    subject: str
    question: str
    rephrase: str
    answer: str
    other: str


def fact(number: int) -> Fact:
    """The fact of a number; no two have a subject in common, nor an answer."""
    place = f"{PLACES[number % 10]} {KINDS[number // 10 % 10]} {number}"
    harbour, other = (HARBOURS[(number + step) % len(HARBOURS)] for step in (0, 3))
    return Fact(
        place,
        f"Which harbour is the ferry of {place} based in?",
        f"The ferry of {place} sails from which harbour?",
        f"{harbour} {number}",
        f"{other} {number}",
    )


def _parquet(rows: Rows) -> bytes:
    written = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), written)
    return written.getvalue()


def _split(name: str, rows: Rows) -> dict[str, bytes]:
    return {f"data/{name}-00000-of-00001.parquet": _parquet(rows)}


def repositories(count: int = 60) -> dict[str, Repository]:
    """The hub's repositories by name."""
    articles = [
        {"id": str(n), "url": "", "title": fact(n).subject, "text": _article(n)} for n in range(80)
    ]
    return {
        "zjunlp/KnowEdit": Repository(
            {"benchmark/ZsRE/ZsRE-test-all.json": json.dumps(_knowedit(count)).encode()}
        ),
        "azhx/counterfact": Repository(
            _split("train", _counterfact(range(count)))
            | _split("test", _counterfact(range(count, count + 8)))
        ),
        "google-research-datasets/nq_open": Repository(
            {
                f"nq_open/{split}-00000-of-00001.parquet": _parquet(_questions(count))
                for split in ("train", "validation")
            }
            | {"README.md": _configured("nq_open", "train", "validation")}
        ),
        "tomh/grace-scotus": Repository(
            _split("train", _opinions(range(90))) | _split("test", _opinions(range(90, 120)))
        ),
        "potsawee/wiki_bio_gpt3_hallucination": Repository(_split("evaluation", _biographies(12))),
        # What is served of a repository with a script: the hub's own conversion.
        "stas/openwebtext-10k": Repository(
            {"openwebtext-10k.py": b"raise SystemExit('this script must not run')"},
            {
                "refs/convert/parquet": {
                    "plain_text/train/0000.parquet": _parquet(
                        [{"text": _article(n)} for n in range(40)]
                    )
                }
            },
        ),
        "wikimedia/wikipedia": Repository(
            {
                "20231101.en/train-00000-of-00002.parquet": _parquet(articles[:40]),
                "20231101.en/train-00001-of-00002.parquet": _parquet(articles[40:]),
                "README.md": _configured("20231101.en", "train"),
            }
        ),
    }


def _configured(name: str, *splits: str) -> bytes:
    """The head of a repository's README, which names its configuration."""
    files = "".join(f"  - split: {split}\n    path: {name}/{split}-*\n" for split in splits)
    head = f"---\nconfigs:\n- config_name: {name}\n  default: true\n  data_files:\n{files}---\n"
    return head.encode()


def _article(number: int) -> str:
    sentences = (
        f"The ferry of {fact(one).subject} is based in {fact(one).answer}, and the keeper of the "
        f"lamp waits there in winter."
        for one in range(number, number + 6)
    )
    return " ".join(sentences)


def _knowedit(count: int) -> Rows:
    return [
        {
            "subject": one.subject, "prompt": one.question, "target_new": one.other,
            "ground_truth": [one.answer], "rephrase_prompt": one.rephrase, "cond": "",
            "locality": {"Relation_Specificity": [
                {"prompt": fact(n + count).question, "ground_truth": [[fact(n + count).answer]]}
            ]},
            "portability": {},
        }
        for n, one in ((n, fact(n)) for n in range(count))
    ]  # fmt: skip


def _counterfact(numbers: Iterable[int]) -> Rows:
    return [
        {
            "case_id": n, "pararel_idx": n,
            "requested_rewrite": {
                "prompt": "The ferry of {} is based in", "subject": one.subject,
                "relation_id": "P1",
                "target_new": {"str": one.other, "id": "Q1"},
                "target_true": {"str": one.answer, "id": "Q2"},
            },
            "paraphrase_prompts": [
                f"The home harbour of the ferry of {one.subject} is",
                f"It was a cold day. The ferry of {one.subject} sails from",
            ],
            "neighborhood_prompts": [f"The ferry of {fact(n + 5000).subject} is based in"] * 2,
            "attribute_prompts": [], "generation_prompts": [],
        }
        for n, one in ((n, fact(n)) for n in numbers)
    ]  # fmt: skip


def _questions(count: int) -> Rows:
    return [
        {
            "question": f"how cold is the sea at {fact(n + 9000).subject}",
            "answer": [fact(n).answer],
        }
        for n in range(count)
    ]


def _opinions(numbers: Iterable[int]) -> Rows:
    return [{"text": f"Case {n}. {_article(n)}", "label": n % 11} for n in numbers]


def _biographies(count: int) -> Rows:
    rows = []
    for n in range(count):
        one = fact(n)
        written = [
            f"{one.subject} was a ferry of {one.other}.",
            f"It sank near {one.other} in 19{n + 10}.",
        ]
        rows.append(
            {
                "gpt3_text": " ".join(written), "gpt3_sentences": written,
                "wiki_bio_text": f"{one.subject} is a ferry of {one.answer}. It sails there daily.",
                "annotation": ["accurate", "major_inaccurate"], "wiki_bio_test_idx": n,
                "gpt3_text_samples": [],
            }
        )  # fmt: skip
    return rows


def write_files(folder: Path, count: int = 60) -> Path:
    """What is not on the hub, under the names that its authors gave it: MEND's zsRE files, FEVER's
    annotated claims, CounterFact with its portability questions and its training half."""
    train, test = range(1000, 1000 + count), range(count)
    _write(folder / "zsre" / "zsre_mend_train.json", _mend(train))
    _write(folder / "zsre" / "zsre_mend_eval.json", _mend(test))
    raw = [
        {
            "input": one.question, "output": [{"answer": one.answer}], "subject": one.subject,
            "filtered_rephrases": [one.rephrase, f"From what harbour sails {one.subject}?"],
        }
        for one in map(fact, range(3000, 3000 + count))
    ]  # fmt: skip
    _write(folder / "zsre" / "structured_zeroshot-train-new_annotated_final.jsonl", raw)
    for split, numbers in (("train", range(2000, 2000 + count)), ("dev", test)):
        _write(folder / "fever" / f"fever-{split}-kilt.jsonl", _claims(numbers))
    for name, rows in (
        ("counterfact.json", _counterfact(test)),
        ("counterfact_portability_gpt4.json", [_portable(row) for row in _counterfact(test)]),
        ("counterfact-train.json", [_plain(row) for row in _counterfact(train)]),
    ):
        _write(folder / "counterfact" / name, rows)
    return folder


def _portable(row: dict[str, Any]) -> dict[str, Any]:
    asked = f"Which sea does the harbour of {row['requested_rewrite']['subject']}'s ferry lie on?"
    return row | {"portability": {"New Question": asked, "New Answer": "the North Sea"}}


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """A record in EasyEdit's form."""
    rewrite = row["requested_rewrite"]
    return {
        "case_id": row["case_id"], "prompt": rewrite["prompt"].format(rewrite["subject"]),
        "target_new": rewrite["target_new"]["str"], "subject": rewrite["subject"],
        "ground_truth": rewrite["target_true"]["str"],
        "rephrase_prompt": row["paraphrase_prompts"][0],
        "locality_prompt": row["neighborhood_prompts"][0],
        "locality_ground_truth": rewrite["target_true"]["str"],
    }  # fmt: skip


def _write(path: Path, rows: Rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = map(json.dumps, rows)
    array = path.suffix == ".json"
    path.write_text("[" + ",\n".join(lines) + "]" if array else "\n".join(lines), "utf-8")


def _mend(numbers: Iterable[int]) -> Rows:
    return [
        {
            "subject": one.subject, "src": one.question, "pred": one.other,
            "rephrase": one.rephrase, "alt": one.other, "answers": [one.answer],
            "loc": f"nq question: how deep is the water at {one.subject}", "loc_ans": "very",
            "cond": "",
        }
        for one in map(fact, numbers)
    ]  # fmt: skip


def _claims(numbers: Iterable[int]) -> Rows:
    return [
        {
            "id": n, "input": f"The ferry of {fact(n).subject} is based in {fact(n).answer}.",
            "output": [{"answer": ("SUPPORTS", "REFUTES")[n % 2]}],
            "alternatives": [("REFUTES", "SUPPORTS")[n % 2]],
            "filtered_rephrases": [f"{fact(n).answer} is where the {fact(n).subject} ferry is."],
        }
        for n in numbers
    ]  # fmt: skip
