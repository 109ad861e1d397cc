"""The upstream task of a classifier: learned once, scored on held-out claims, kept apart."""

import json
from dataclasses import replace

import pytest
import torch

from lib.backbones.backbone import Backbone
from lib.backbones.sources import loading
from lib.backbones.tuning import classes
from lib.backbones.tuning.classes import ClassifierConfig, tune_classifier
from lib.backbones.tuning.predictions import Flips, predicted_classes
from lib.data import datasets
from lib.data.records import Dataset, Edit, Probe
from lib.data.training import claim_task
from lib.errors import BackboneError, RecordError, UsageError
from lib.runs.execute import execute
from lib.runs.plan import Run
from lib.runs.progress import LineProgress
from lib.runs.resources import Resources, lessons_of
from lib.runs.store import Store
from lib.storage.cache import cache_dir
from tests.conftest import edits, prompt_logits

WORDS = ("bell", "tide", "moor", "keel", "lamp", "rope", "gull", "reef")
CLAIMS = [
    (f"The {one} is {'not ' if number % 2 else ''}near the {other}.", str(1 - number % 2))
    for number, (one, other) in enumerate((a, b) for a in WORDS for b in WORDS if a != b)
]
QUICK = ClassifierConfig(epochs=14, learning_rate=1e-3, batch_size=8)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("STUDY_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def base() -> Backbone:
    return loading.load("tiny-bert", num_labels=2)


def test_a_classifier_learns_and_says_how_well(base: Backbone, monkeypatch) -> None:
    learned, held_out = CLAIMS[:48], {"claims": CLAIMS[48:], "edits": [CLAIMS[49]]}
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    tuned = tune_classifier(base, learned, held_out, QUICK)
    found = predicted_classes(tuned, [text for text, _ in CLAIMS[48:]])
    hits = sum(str(c) == gold for c, (_, gold) in zip(found, CLAIMS[48:], strict=True))
    assert hits >= 7
    assert all(torch.equal(value, before[k]) for k, value in base.model.state_dict().items())
    (file,) = (cache_dir() / "tuned").glob("*/tuning.json")
    record = json.loads(file.read_text())
    assert record["held_out"] == {
        "claims": {"claims": 8, "accuracy": hits / 8, "majority": 0.5},
        "edits": {"claims": 1, "accuracy": record["held_out"]["edits"]["accuracy"], "majority": 1},
    }
    assert record["steps"] == len(record["loss"]) == 84 and record["loss"][-1] < 0.3
    assert f"accuracy {hits / 8:.3f} of 8 held-out claims (commonest class 0.500)" in (
        tuned.provenance
    )
    monkeypatch.setattr(classes, "_train", lambda *a: pytest.fail("it learned again"))
    again = tune_classifier(base, learned, held_out, QUICK)
    assert again.content == tuned.content != base.content
    assert not any(parameter.requires_grad for parameter in again.model.parameters())


def test_what_decides_the_weights_decides_their_place(base: Backbone) -> None:
    short = replace(QUICK, epochs=1)
    contents = {
        tune_classifier(base, claims, {}, config).content
        for claims, config in (
            (CLAIMS[:16], short),
            (CLAIMS[:16], replace(short, seed=1)),
            (CLAIMS[1:17], short),
        )
    }
    assert len(contents) == 3


def test_only_classifiers_with_claims_are_tuned(base: Backbone) -> None:
    with pytest.raises(BackboneError, match="no classifier"):
        tune_classifier(loading.load("tiny-gpt2"), CLAIMS, {})
    with pytest.raises(BackboneError, match="at least one claim"):
        tune_classifier(base, [], {})


def test_an_epoch_has_every_row_once_and_like_lengths_together() -> None:
    lengths = [5 * (i * 7 % 40) for i in range(1000)]
    batches = list(classes._batches(lengths, 16, torch.Generator().manual_seed(0)))
    assert sorted(index for batch in batches for index in batch) == list(range(1000))
    spread = [max(lengths[i] for i in b) - min(lengths[i] for i in b) for b in batches]
    assert sum(spread) / len(spread) < 25
    firsts = [lengths[batch[0]] for batch in batches]
    assert firsts != sorted(firsts)


# -- which claims ----------------------------------------------------------------------------


def source(count: int = 20) -> Dataset:
    plain = [Probe(f"c{i}", f"Claim {i}.", str(i % 2), "upstream") for i in range(count)]
    taught = [Probe(f"t{i}", f"Lesson {i}.", "1", "upstream") for i in range(9)]
    records = tuple(replace(edit, target_true="1") for edit in edits(6, classes=True))
    return Dataset("invented", records, tuple(plain), taught=tuple(taught))


def test_what_is_learned_is_scored_nowhere() -> None:
    made = claim_task(source(), claims=8, held_out=3)
    assert made.learned[:8] == tuple((f"Claim {i}.", str(i % 2)) for i in range(12, 20))
    assert made.learned[8:] == tuple((f"Lesson {i}.", "1") for i in range(4))
    assert [text for text, _ in made.held_out["claims"]] == ["Claim 9.", "Claim 10.", "Claim 11."]
    assert made.held_out["edits"] == tuple((e.prompt, "1") for e in source().edits[:3])
    apart = made.apart_from(source())
    assert [probe.prompt for probe in apart.upstream] == [f"Claim {i}." for i in range(9)]
    assert apart.edits == source().edits
    own = Probe("own", "Claim 15.", "1", "upstream")
    meeting = replace(source().edits[0], prompt="Claim 19.", subject="")
    with_own = replace(source().edits[1], locality=(own,))
    met = replace(source(), edits=(meeting, with_own, *source().edits[2:]))
    assert made.apart_from(met).edits == source().edits[2:]


def test_the_sizes_of_the_lessons() -> None:
    assert len(claim_task(source(), claims=None, held_out=3, taught=0).learned) == 10
    assert len(claim_task(source(), claims=8, held_out=3, taught=2).learned) == 10
    with pytest.raises(RecordError, match=r"brings 20 upstream claims.*lower tune\.claims"):
        claim_task(source(), claims=17, held_out=3)


# -- flips -----------------------------------------------------------------------------------


def test_targets_are_against_the_prediction_and_rephrases_with_it(base: Backbone) -> None:
    chosen = list(datasets.load("invented_claims").edits[:30])
    turned = Flips(base).of(chosen)
    kept = 0
    for edit, plain in zip(turned, chosen, strict=True):
        own = int(prompt_logits(base, [plain.prompt])[0].argmax())
        assert edit.target == str(1 - own) and edit.prompt == plain.prompt
        same = [int(prompt_logits(base, [t])[0].argmax()) == own for t in plain.rephrases]
        assert edit.rephrases == tuple(
            text for text, agrees in zip(plain.rephrases, same, strict=True) if agrees
        )
        kept += len(edit.rephrases)
    assert 0 < kept < 60, "else nothing was shown"


def test_each_text_is_classified_once(base: Backbone, monkeypatch) -> None:
    asked: list[str] = []

    def counting(backbone: Backbone, texts: list[str]) -> list[int]:
        asked.extend(texts)
        return predicted_classes(backbone, texts)

    monkeypatch.setattr("lib.backbones.tuning.predictions.predicted_classes", counting)
    flips, chosen = Flips(base), list(edits(6, classes=True))
    assert flips.of(chosen[:4]) == flips.of(chosen)[:4]
    assert len(asked) == len(set(asked)) == 12


@pytest.mark.parametrize("name", ["tiny-bert", "tiny-gpt2"])
def test_only_two_classes_can_be_flipped(name: str) -> None:
    with pytest.raises(BackboneError, match="no classifier of two classes"):
        Flips(loading.load(name))  # this BERT has four


# -- a whole setting -------------------------------------------------------------------------

SPEC = {
    "backbone": "tiny-bert",
    "device": "cpu",
    "dataset": {"name": "invented_claims", "source": "embedded"},
    "tune": {"claims": 40, "held_out": 16},
    "training": {"n_train": 16, "n_valid": 6},
    "stream": {
        "kind": "records", "n_edits": 6, "batch_size": 3, "seed": 0, "flip_predictions": True,
    },
    "editor": "ft",
    "config": {"site": {"part": "mlp_out", "block": 3}, "steps": 4},
    "protocol": {"rounds": "single", "evaluation_batch": 8},
}  # fmt: skip


def test_claims_of_tuning_stream_and_training_are_disjoint() -> None:
    resources = Resources()
    made, taught = resources.materials(SPEC), lessons_of(resources.read, SPEC)
    test, facts, backbone = made.stream, made.learned, made.backbone
    unrelated = [fact.locality[0].prompt for fact in (*facts.train, *facts.valid)]
    groups = [
        {text for text, _ in taught.learned},
        {text for text, _ in taught.held_out["claims"]},
        {probe.prompt for probe in test.upstream},
        set(unrelated),
        {row.prompt for row in (*test.edits, *test.holdout)},
        {t for fact in facts.train for t in (fact.prompt, *fact.rephrases)},
        {t for fact in facts.valid for t in (fact.prompt, *fact.rephrases)},
    ]
    assert sum(map(len, groups)) == len(set().union(*groups))
    assert len(unrelated) == len(set(unrelated)) == 22
    assert backbone.model.config.num_labels == 2 and "40 claims" in backbone.provenance
    for fact in (*test.edits, *facts.train, *facts.valid):
        assert fact.target == str(1 - predicted_classes(backbone, [fact.prompt])[0])
    for fact in (*facts.train, *facts.valid):
        own, *others = predicted_classes(backbone, [fact.prompt, *fact.rephrases])
        assert set(others) == {own}


def test_the_setting_says_where_a_template_would_mislead() -> None:
    spec = {**SPEC, "stream": {**SPEC["stream"], "template": "Claim: {}"}}
    with pytest.raises(UsageError, match="no template"):
        Resources().materials(spec)


def test_no_edit_is_right_before_it_is_made(tmp_path) -> None:
    store = Store(tmp_path / "store")
    run = Run("melo", "claims", "FT", "", "", 0, SPEC, 1.0, 0.1)
    assert execute(run, store, Resources(), LineProgress()), store.failure(run)
    finished = store.finished(run)
    before = finished.records[finished.records["moment"] == "before"]
    wrong = before[before["subset"] != "upstream"]
    assert (wrong["answer_accuracy"] == 0.0).all() and len(wrong) > 6
    assert "held-out claims" in finished.manifest["backbone"]["provenance"]


def test_two_classes_for_claims_without_tuning() -> None:
    spec = {**SPEC, "tune": None, "stream": {**SPEC["stream"], "flip_predictions": False}}
    made = Resources().materials(spec)
    assert made.backbone.model.config.num_labels == 2
    chosen: tuple[Edit, ...] = made.stream.edits
    assert {edit.target for edit in chosen} == {"0", "1"}
