"""MALMEN's road to the published zsRE and FEVER files: streams, training facts, upstream claims."""

from pathlib import Path
from typing import Any

import pytest

from lib.data.records import Stream
from lib.data.training import TrainingFacts
from lib.runs import plan
from lib.runs.resources import Lessons, Resources, chosen_of, learned_of, lessons_of, stream_of
from tests.runs.test_study import published_data

needs_files = pytest.mark.skipif(
    published_data() is None or not (published_data() / "fever").is_dir(),
    reason="no published data here (set STUDY_PUBLISHED_DATA to a folder with zsre/ and fever/)",
)


def spec(name: str, stream: dict[str, Any], training: dict[str, Any], **more: Any) -> dict:
    """What the road reads of a run on published files."""
    common = {"kind": "records", "batch_size": 64, "seed": 0, "n_near": 0}
    return {
        "dataset": {"name": name, "source": "files"},
        "tune": None,
        "stream": common | stream,
        "training": training,
    } | more


def road(wanted: dict[str, Any]) -> tuple[Lessons, Stream, TrainingFacts]:
    """The steps that need no backbone: nothing here asks what one knows."""
    read = Resources(data_dir=published_data()).read
    taught = lessons_of(read, wanted)
    chosen = chosen_of(read, wanted, taught, None)
    test = stream_of(wanted, chosen, None)
    return taught, test, learned_of(read, wanted, taught, chosen, None)


@needs_files
def test_zsre_trains_on_one_file_and_edits_the_other_towards_the_truth() -> None:
    style = {"true_targets": True, "question_mark": True, "keep_mark": True}
    training = {"variant": "train", "n_train": None, "n_valid": 512}
    wanted = spec("zsre", {"n_edits": 1037} | style, training, variant="eval")
    _, test, facts = road(wanted)
    assert len(test.edits) == len(test.holdout) == len(test.upstream) == 1037
    assert all(edit.target == edit.target_true for edit in test.edits)
    assert len(facts.valid) == 512 and 9_300 < len(facts.train) < 9_488
    subjects = {edit.subject.casefold() for edit in test.edits}
    assert subjects.isdisjoint(fact.subject.casefold() for fact in facts.train)
    asked = [fact.locality[0].prompt for fact in facts.train]
    assert {probe.prompt for probe in test.upstream}.isdisjoint(asked)
    for prompt in (*asked, *(probe.prompt for probe in test.upstream)):
        assert prompt.startswith("nq question: ") and prompt.endswith("?")
        assert not prompt.endswith("??")


@needs_files
def test_fever_has_claims_for_the_stream_for_training_and_upstream() -> None:
    wanted = spec(
        "fever",
        {"n_edits": 512, "need_subject": False},
        {"variant": "train", "n_train": 1024, "n_valid": 128},
        variant="dev",
        tune={"claims": 3000, "held_out": 300},
    )
    taught, test, facts = road(wanted)
    assert len(test.edits) == len(test.holdout) == len(test.upstream) == 512
    assert [len(taught.learned), len(taught.held_out["claims"])] == [3000, 300]
    groups = [
        {text for text, _ in (*taught.learned, *taught.held_out["claims"])},
        {row.prompt for row in (*test.edits, *test.holdout)},
        {probe.prompt for probe in test.upstream},
        {text for fact in facts.train for text in (fact.prompt, *fact.rephrases)},
        {fact.locality[0].prompt for fact in facts.train},
        {fact.locality[0].prompt for fact in facts.valid},
    ]
    assert sum(map(len, groups)) == len(set().union(*groups))
    assert {edit.target for edit in test.edits} == {"0", "1"}


def test_a_paper_without_claims_asks_for_no_fever_folder(tmp_path: Path) -> None:
    for name in ("zsre", "nq"):
        (tmp_path / name).mkdir()
    assert plan.runs("melo", "smoke", data_dir=tmp_path)
