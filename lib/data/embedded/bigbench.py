"""The parts of the `bigbench` release that the study reads, kept as small JSONL in the cache.

One streaming pass over the source archive (a tar.gz of 358 MB) writes every member below as
gzip JSONL with a manifest that holds member names, hashes, row counts and BIG-bench's canary
string; the archive is then dropped. The package itself is never installed or imported.
"""

import gzip
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from lib.errors import AssetError
from lib.storage import archives, fingerprints
from lib.storage.cache import Cache, cache_dir

Row = dict[str, object]


def _best(scores: dict[str, float]) -> str:
    return max(scores, key=lambda option: scores[option])


def _triples(task: Row) -> Iterator[Row]:
    for example in task["examples"]:
        target = example["target"]
        objects = target if isinstance(target, list) else [target]
        yield {"prompt": example["input"], "objects": list(dict.fromkeys(objects))}


def _conflicts(task: Row) -> Iterator[Row]:
    """Question, the answer it had in Natural Questions (score 0), and the one put in its place."""
    for example in task["examples"]:
        question = example["input"].split("\nContext:")[0].strip().removeprefix("Question: ")
        by_score = {score: option for option, score in example["target_scores"].items()}
        if set(by_score) == {0, 1}:
            yield {"question": question, "original": by_score[0], "replacement": by_score[1]}


def _fever(task: Row) -> Iterator[Row]:
    pattern = re.compile(r"the following claim was made: (.*)\nQ: Was this claim", re.DOTALL)
    for example in task["examples"]:
        found = pattern.search(example["input"])
        if found:
            label = _best(example["target_scores"])
            yield {"id": example.get("id"), "claim": found[1], "label": label}


def _vitaminc(task: Row) -> Iterator[Row]:
    for example in task["examples"]:
        evidence, _, claim = example["input"].rpartition("\nClaim: ")
        yield {"evidence": evidence, "claim": claim, "label": _best(example["target_scores"])}


def _labelled(task: Row) -> Iterator[Row]:
    for example in task["examples"]:
        yield {
            "text": example["input"],
            "label": _best(example["target_scores"]),
            "options": sorted(example["target_scores"]),
        }


def _paragraphs(squad: Row) -> Iterator[Row]:
    """Paragraphs in file order, once each; the title is a page name or the article's address."""
    seen = set()
    for article in squad["data"]:
        for paragraph in article["paragraphs"]:
            text = paragraph["context"].strip()
            if text and text not in seen:
                seen.add(text)
                yield {"title": article.get("title", ""), "text": text}


_TASKS = "bigbench/benchmark_tasks/"
# name of the compact file -> (member of the archive, how its rows are made)
MEMBERS: dict[str, tuple[str, Callable[[Row], Iterator[Row]]]] = {
    "triples": ("qa_wikidata/task.json", _triples),
    "conflicts": ("contextual_parametric_knowledge_conflicts/task.json", _conflicts),
    "fever": ("fact_checker/fever/task.json", _fever),
    "vitaminc": ("vitaminc_fact_verification/task.json", _vitaminc),
    "multiemo_hotels": ("multiemo/hotels_text_en/task.json", _labelled),
    "multiemo_medicine": ("multiemo/medicine_text_en/task.json", _labelled),
    "multiemo_products": ("multiemo/products_text_en/task.json", _labelled),
    "multiemo_reviews": ("multiemo/reviews_text_en/task.json", _labelled),
    "strategyqa": ("strategyqa/task.json", _labelled),
    "winowhy": ("winowhy/task.json", _labelled),
    "new_wiki": ("squad_shifts/new_wiki_v1.0.json", _paragraphs),
    "squad": ("squad_shifts/squaddev_v1.1.json", _paragraphs),
    "nyt": ("squad_shifts/nyt_v1.0.json", _paragraphs),
}
TEXTS = ("new_wiki", "squad", "nyt")


def folder() -> Path:
    """The compact form, made of the archive if it is not there yet; the archive is then dropped.

    Raises AssetError if nothing is cached and the archive cannot be had.
    """
    identity = [archives.ASSETS["bigbench"].sha256, fingerprints.own(__name__)]
    made = Cache.user().folder(
        "data/bigbench", identity, lambda scratch: _convert(archives.fetch("bigbench"), scratch)
    )
    archives.discard("bigbench")
    return made


def rows(name: str) -> tuple[Row, ...]:
    """All rows of one member (a key of MEMBERS) as plain mappings; extracts on first use.

    Raises AssetError if nothing is cached and the archive cannot be had.
    """
    if name not in MEMBERS:
        raise AssetError(f"bigbench has no part {name!r} here; known: {', '.join(MEMBERS)}.")
    return _read(cache_dir(), name)


@cache
def _read(_root: Path, name: str) -> tuple[Row, ...]:
    with gzip.open(folder() / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        return tuple(json.loads(line) for line in file)


def texts(kind: str) -> list[str]:
    """Plain paragraphs: "new_wiki" and "squad" (Wikipedia, for covariance), "nyt" (held out)."""
    if kind not in TEXTS:
        raise AssetError(f"there is no text {kind!r}; known: {', '.join(TEXTS)}.")
    return [str(row["text"]) for row in rows(kind)]


def _convert(archive: Path, target: Path) -> None:
    by_suffix = {_TASKS + member: name for name, (member, _) in MEMBERS.items()}
    found: dict[str, Row] = {}
    canary = ""
    for path, stream in archives.members(archive, tuple(by_suffix)):
        suffix = next(suffix for suffix in by_suffix if path.endswith(suffix))
        name = by_suffix[suffix]
        content = stream.read()
        try:
            task = json.loads(content)
            canary = str(task.get("canary") or canary)
            made = list(MEMBERS[name][1](task))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise AssetError(
                f"{path} in {archive.name} does not look as expected: {error}."
            ) from error
        write_rows(target / f"{name}.jsonl.gz", made)
        digest = hashlib.sha256(content).hexdigest()
        found[name] = {"member": path, "sha256": digest, "rows": len(made)}
    missing = [name for name in MEMBERS if name not in found]
    if missing:
        raise AssetError(f"{archive.name} lacks the parts {', '.join(missing)}; fetch it again.")
    manifest = {
        "archive": archive.name,
        "canary": canary,
        "terms": "BIG-bench; triples Wikidata (CC0); texts under the terms of each source. "
        "Cached for reading only; keep out of training corpora and out of published reports.",
        "parts": found,
    }
    (target / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def write_rows(path: Path, made: list[Row]) -> None:
    """Write gzip JSONL that is the same byte for byte each time."""
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0, filename="") as file:
        for row in made:
            file.write(json.dumps(row, ensure_ascii=False).encode("utf-8") + b"\n")
    path.write_bytes(buffer.getvalue())
