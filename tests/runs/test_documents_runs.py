"""The SCOTUS setting: the classifier it tunes, rows padded to the full width, its runs."""

import json
from pathlib import Path

import pytest
import torch

from lib.backbones.backbone import Backbone
from lib.backbones.encoding import encode, encode_prompts
from lib.backbones.sources import loading
from lib.backbones.tuning.predictions import predicted_classes
from lib.data import datasets
from lib.data.records import Stream
from lib.data.streams import document_stream
from lib.editors import build
from lib.errors import EditorError
from lib.evaluation.evaluator import Protocol
from lib.runs import plan
from lib.runs.execute import execute
from lib.runs.progress import LineProgress
from lib.runs.resources import Resources
from lib.runs.store import Store
from lib.storage.cache import cache_dir
from tests.conftest import configuration, make
from tests.data.test_streams import run

TEXTS = ["A bell.", "The keeper of the old light rang the bell twice before the boat came in."]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("STUDY_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def three() -> Backbone:
    return loading.load("tiny-bert", num_labels=3)


def letters(count: int = 6) -> Stream:
    return document_stream(
        datasets.load("invented_documents"), n_edits=count, batch_size=3, n_upstream=6
    )


# -- full width ------------------------------------------------------------------------------


def test_rows_of_full_width_have_as_many_columns_as_may_be(three: Backbone):
    wide = encode_prompts(three, TEXTS, max_length=12, full_width=True)
    narrow = encode_prompts(three, TEXTS[:1], max_length=12)
    assert wide.input_ids.shape == (2, 12) and narrow.input_ids.shape[1] < 12
    width = narrow.input_ids.shape[1]
    assert torch.equal(wide.input_ids[:1, :width], narrow.input_ids)
    assert (wide.input_ids[0, width:] == three.pad_id).all() and not wide.attention_mask[
        0, width:
    ].any()
    assert wide.last_token.tolist() == [width - 1, 11]
    labelled = encode(three, TEXTS[:1], ["2"], max_length=12, full_width=True)
    assert labelled.input_ids.shape == (1, 12) and labelled.labels.tolist() == [2]


def test_the_official_key_of_a_document_is_that_of_the_last_column(three: Backbone):
    """melo 2.4: at full width the key does not depend on what else is in the batch."""
    options = {
        "max_length": 20,
        "key_position": "last_column",
        "sites": [{"part": "mlp_out", "block": 4}],
    }

    def key(full_width: bool, beside: str) -> torch.Tensor:
        editor = make("melo", three, full_width=full_width, **options)
        batch = encode_prompts(three, [TEXTS[0], beside], max_length=20, full_width=full_width)
        found = editor.keys_of(batch)[0]
        editor.close()
        return found

    alone, among = (key(True, beside) for beside in (TEXTS[0], TEXTS[1]))
    assert torch.allclose(alone, among, atol=1e-5)  # other sums in one row more or less
    assert not torch.allclose(key(False, TEXTS[0]), key(False, TEXTS[1]), atol=1e-2)
    with torch.no_grad():
        whole = encode_prompts(three, TEXTS[:1], max_length=20, full_width=True)
        editor = make("melo", three, full_width=True, **options)
        state = editor.prefix.record(whole, watch=editor.watch)
        assert torch.allclose(alone, state.watched[editor.router_path][0, 19], atol=1e-5)
        editor.close()


def test_padding_changes_no_score_beyond_rounding():
    frames = [
        run(make("lora", backbone, max_length=40, full_width=wide), letters(), Protocol())[0]
        for wide in (False, True)
        for backbone in [loading.load("tiny-bert", num_labels=3)]
    ]
    assert frames[0]["prediction"].tolist() == frames[1]["prediction"].tolist()
    assert frames[0]["nll"].to_numpy() == pytest.approx(frames[1]["nll"].to_numpy(), abs=1e-3)
    edited = frames[0].query("moment == 'end' and subset == 'edits'")
    assert (
        edited["exact_match"].mean() > frames[0].query("moment == 'before'")["exact_match"].mean()
    )


def test_full_width_needs_a_classifier_and_a_width(three: Backbone):
    for backbone, length in ((three, None), (loading.load("tiny-gpt2"), 8)):
        config = configuration("ft", backbone) | {"full_width": True, "max_length": length}
        with pytest.raises(EditorError, match="full_width is for classifiers"):
            build("ft", backbone, config)


# -- the setting -----------------------------------------------------------------------------


def smoke_runs() -> list[plan.Run]:
    return [r for r in plan.runs("melo", "smoke", seeds=1, device="cpu") if r.setting == "scotus"]


def test_the_classifier_learns_the_documents_of_the_setting(monkeypatch):
    spec = smoke_runs()[0].spec
    tune = {"documents": 40, "held_out": 12, "max_length": 100, "epochs": 12, "learning_rate": 1e-3}
    tune |= {"batch_size": 8}
    spec = spec | {"tune": tune, "stream": spec["stream"] | {"n_upstream": 40}}
    made = Resources().materials(spec)
    backbone, stream = made.backbone, made.stream
    assert backbone.model.config.num_labels == 3
    classes = predicted_classes(backbone, [probe.prompt for probe in stream.upstream], 100)
    right = [str(c) == p.target for c, p in zip(classes, stream.upstream, strict=True)]
    assert sum(right) > 30
    assert "fine-tuned here on 40 documents, accuracy " in backbone.provenance
    assert "of 12 held-out documents (commonest class 0.333)" in backbone.provenance
    (file,) = (cache_dir() / "tuned").glob("*/tuning.json")
    record = json.loads(file.read_text())
    assert record["config"] | tune == record["config"] | {"documents": 40, "held_out": 12}
    assert {name: group["claims"] for name, group in record["held_out"].items()} == {
        "documents": 12, "edits": 12,
    }  # fmt: skip
    assert Resources().materials(spec).backbone.content == backbone.content


def test_a_published_head_is_kept_and_a_new_one_has_the_classes_of_the_data(monkeypatch):
    spec, asked = smoke_runs()[0].spec | {"tune": None}, []
    load = loading.load

    def noted(name: str, **options: object) -> Backbone:
        asked.append(options["num_labels"])
        return load("tiny-bert", **options | {"num_labels": 3})

    monkeypatch.setattr(loading, "load", noted)
    for name in ("scotus-bert", "tiny-bert", "bert-base"):
        Resources().materials(spec | {"backbone": name})
    assert asked == [None, 3, 3]


def test_every_editor_of_the_setting_edits_documents(tmp_path: Path):
    runs, shared, store = smoke_runs(), Resources(), Store(tmp_path / "out")
    assert {run.editor for run in runs} >= {"MELO", "MELO intended", "GRACE", "LoRA", "FT", "MEND"}
    for run_ in runs:
        assert execute(run_, store, shared, LineProgress("")), store.failure(run_)
    found = {run_.editor: store.finished(run_) for run_ in runs}
    for done in found.values():
        counts = done.manifest["dataset"]["counts"]
        assert (counts["edits"], counts["upstream"], counts["near"]) == (8, 6, 4)
        end = done.records.query("moment == 'end'")
        assert end["subset"].value_counts().to_dict() == {"edits": 8, "upstream": 6, "near": 4}
        assert end["exact_match"].isin([0.0, 1.0]).all()
    learned = found["GRACE"].records.query("subset == 'edits'").groupby("moment")["exact_match"]
    assert learned.mean()["own"] > learned.mean()["before"]
    assert found["MEND"].manifest["training"]["train"] == 4
    upstream = found["MELO"].records.query("moment == 'end' and subset == 'upstream'")
    assert (upstream["agreement"] == 1.0).all()  # the paper's radius lets no other document in


def test_the_paper_profile_has_the_released_values():
    runs = plan.runs("melo", "paper", seeds=1, device="cpu", source="hub")
    run_ = next(r for r in runs if (r.setting, r.editor, r.sweep) == ("scotus", "MELO", ""))
    config, stream = run_.spec["config"], run_.spec["stream"]
    assert run_.spec["backbone"] == "scotus-bert" and run_.spec["tune"] is None
    assert (config["max_length"], config["full_width"], config["radius"]) == (512, True, 0.1)
    assert [site["block"] for site in config["sites"]] == [9, 10, 11]
    assert -(-stream["n_edits"] // stream["batch_size"]) == 19 <= config["n_blocks"]
    assert run_.spec["protocol"]["checkpoint_every"] * stream["batch_size"] == 200
