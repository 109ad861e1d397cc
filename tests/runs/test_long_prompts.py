"""Prompts longer than the backbone can read: told before anything is edited, or left out."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lib.backbones.backbone import Backbone
from lib.backbones.encoding import check_length, encode_prompts, prompt_ids, target_ids
from lib.backbones.sources import loading
from lib.data import datasets
from lib.data.records import Dataset, Edit, Probe, Stream
from lib.data.streams import document_stream, readable_stream, record_stream
from lib.errors import RecordError
from lib.runs import plan
from lib.runs.execute import execute
from lib.runs.progress import LineProgress
from lib.runs.resources import Resources
from lib.runs.store import Store
from tests.conftest import CAUSAL, CLASSIFIER, SEQ2SEQ, make

WORDS = "The keeper rows to the far rock. "
LONG = WORDS * 120 + "Who lights Mew Stone?"


def record(backbone: Backbone, tokens: int, target: str = "Odo") -> Edit:
    """An edit whose prompt takes that many tokens, the backbone's own marks included."""
    text = "Mew Stone"
    while (missing := tokens - len(prompt_ids(backbone, text))) > 0:
        text += (
            " keeps a lamp"
            if missing > 40
            else next(
                more
                for more in (" a", "?", "!", " b")
                if len(prompt_ids(backbone, text + more)) <= tokens
            )
        )
    return Edit("long", text, target, "Mew Stone")


@pytest.mark.parametrize("name", [*CAUSAL, *CLASSIFIER])
def test_what_is_just_short_enough_is_read_and_one_token_more_is_told(name: str) -> None:
    backbone, target = loading.load(name), "1" if name in CLASSIFIER else "Odo Brask"
    if name == "tiny-llama":  # rotary positions that are computed have no end
        assert backbone.longest is None
        check_length(backbone, Edit("r", LONG, target, ""))
        return
    answer = 0 if name in CLASSIFIER else len(target_ids(backbone, target))
    fits = record(backbone, backbone.longest - answer, target)
    check_length(backbone, fits)
    for more in ({"before": 1}, {"written": answer + 1} if answer else {"before": 1}):
        with pytest.raises(RecordError, match=rf"^long: .* {backbone.longest + 1} tokens"):
            check_length(backbone, fits, **more)
    too_long = replace(fits, prompt=fits.prompt + " a")
    check_length(backbone, too_long, max_length=backbone.longest - answer)
    editor = make("ft", backbone, steps=1)
    editor.edit([fits])
    editor.rollback()
    before = {name: value.clone() for name, value in backbone.model.state_dict().items()}
    with pytest.raises(RecordError, match="long: prompt and answer take"):
        editor.edit([replace(fits, prompt="Who lights Mew Stone?"), too_long])
    assert editor.n_edits == 0
    after = backbone.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    editor.close()


@pytest.mark.parametrize("name", SEQ2SEQ)
def test_relative_positions_have_no_end(name: str) -> None:
    backbone = loading.load(name)
    assert backbone.longest is None
    editor = make("ft", backbone, steps=1)
    editor.edit([Edit("r", LONG, "Odo", "")])
    editor.close()


def test_contexts_in_front_of_a_prompt_count() -> None:
    backbone = loading.load("tiny-gpt2")
    fits = record(backbone, backbone.longest - len(target_ids(backbone, "Odo")))
    for kind in ("memit", "rome", "comeba_hk"):
        editor = make(kind, backbone)
        with pytest.raises(RecordError, match="long: prompt and answer take"):
            editor.edit([fits])
        editor.close()


@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-gptj", "tiny-bert"])
def test_no_row_reaches_a_model_that_cannot_read_it(name: str) -> None:
    with pytest.raises(RecordError, match=r"longer than .* can read \(512\): .*The keeper"):
        encode_prompts(loading.load(name), ["short", LONG])


# -- streams ---------------------------------------------------------------------------------


def records(count: int = 6) -> Dataset:
    edits = tuple(
        Edit(
            f"r{i}", f"Who lights Stone {i}?", "Odo", f"Stone {i}",
            (f"By whom is Stone {i} lit?", f"Stone {i} is lit by whom?"),
            (Probe(f"r{i}:near", f"Who lights Rock {i}?", "Ada", "near"),),
        )
        for i in range(count)
    )  # fmt: skip
    pool = tuple(Probe(f"q{i}", f"how cold is bay {i}?", "very", "upstream") for i in range(9))
    return Dataset("invented", edits, pool, sources=("a.jsonl",))


def check(row: Edit | Probe) -> None:
    if "LONG" in row.prompt:
        raise RecordError(f"{row.identity}: too long")


def four(dataset: Dataset) -> Stream:
    return record_stream(dataset, n_edits=4, batch_size=2, seed=0, n_near=1)


def changed(part: str) -> Dataset:
    """The records with one prompt too long."""
    data = records()
    second, probe = data.edits[1], Probe("r1:near", "LONG", "Ada", "near")
    second = {
        "prompt": replace(second, prompt="LONG Stone 1?"),
        "rephrase": replace(second, rephrases=("LONG?",)),
        "near": replace(second, locality=(probe,)),
    }.get(part, second)
    upstream = (Probe("q0", "LONG", "", "upstream"), *data.upstream[part == "upstream" :])
    upstream = upstream if part == "upstream" else data.upstream
    return replace(data, edits=(data.edits[0], second, *data.edits[2:]), upstream=upstream)


@pytest.mark.parametrize("part", ["prompt", "rephrase", "near", "upstream"])
def test_a_long_prompt_ends_a_strict_stream_and_is_left_out_otherwise(part: str) -> None:
    data = changed(part)
    with pytest.raises(RecordError, match="too long"):
        readable_stream(data, four, check)
    made = readable_stream(data, four, check, strict=False)
    (left,) = made.skipped
    assert (left.file, left.line) == ("a.jsonl", 0) and "too long" in left.reason
    kept = [edit.relation for edit in made.edits]
    gone = part in ("prompt", "rephrase")
    assert kept == (["r0", "r2", "r3", "r4"] if gone else ["r0", "r1", "r2", "r3"])
    assert len(made.near) == 4 - (part == "near") and len(made.upstream) == 4
    assert not any("LONG" in row.prompt for row in (*made.edits, *made.holdout, *made.upstream))


def test_a_stream_that_can_be_read_is_the_same() -> None:
    assert readable_stream(records(), four, check) == four(records())
    unused = replace(records(), edits=(*records().edits[:5], changed("prompt").edits[1]))
    assert readable_stream(unused, four, check) == four(unused)


def test_what_cannot_be_left_out_is_an_error_and_no_loop() -> None:
    def other(_: Dataset) -> Stream:
        return document_stream(records(1), n_edits=1, batch_size=1, n_upstream=0)

    def refuse(row: Edit | Probe) -> None:
        raise RecordError(f"{row.identity}: never")

    with pytest.raises(RecordError, match="never"):
        readable_stream(Dataset("empty"), other, refuse, strict=False)
    with pytest.raises(
        RecordError, match=r"gives only 2 records.*; 12 were left out\. r0#1: never"
    ):
        readable_stream(records(), four, refuse, strict=False)


@pytest.mark.parametrize("strict", [True, False])
def test_a_run_tells_of_a_long_record_or_leaves_it_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strict: bool
) -> None:
    run = next(
        run
        for run in plan.runs("comeba_hk", "smoke", device="cpu")
        if run.spec["backbone"] == "tiny-gpt2" and run.editor == "FT (EasyEdit)" and not run.sweep
    )
    read = datasets.load

    def careless(name: str, **options: object) -> Dataset:
        data = read(name, **options)
        first = data.edits[0]
        long = replace(first, prompt=WORDS * 120 + first.prompt)
        return replace(data, edits=(long, *data.edits), left_out=("2 texts of a.jsonl",))

    monkeypatch.setattr(datasets, "load", careless)
    store = Store(tmp_path)
    assert execute(run, store, Resources(strict=strict), LineProgress("")) is not strict
    if strict:
        assert "--skip-bad" in store.failure(run)["error"]
        return
    data = store.finished(run).manifest["dataset"]
    assert ["tokens, and tiny-gpt2 reads 512" in bad["reason"] for bad in data["skipped"]] == [True]
    assert data["counts"]["edits"] == run.spec["stream"]["n_edits"]
    assert data["left_out"] == ["2 texts of a.jsonl"]
