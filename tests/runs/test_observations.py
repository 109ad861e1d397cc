"""What runs say beside their scores: observations, timings, progress; and what they load."""

from pathlib import Path

import pytest

from lib.backbones.sources import loading
from lib.runs.execute import execute
from lib.runs.progress import LineProgress
from lib.runs.resources import Resources
from lib.runs.store import Store
from lib.runs.study import Study
from tests.runs.test_execute import SINGLE, smoke_runs


def says(self, stream, keys=None):
    """What an observing editor might yield."""
    for index, edit in enumerate(stream.edits):
        yield {"subset": "edits", "edit_index": index, "z": None if index else 2.5,
               "held": self.n_edits, "record": edit.identity}  # fmt: skip


def test_observations_come_after_the_last_batch_and_survive_the_store(
    tmp_path: Path, monkeypatch
) -> None:
    from lib.editors.finetune import FineTune

    run, store = smoke_runs("zsre-causal", single=True)["FT"], Store(tmp_path)
    monkeypatch.setattr(FineTune, "observe", says)
    assert execute(run, store, Resources(), LineProgress())
    found = store.finished(run).observations
    assert found["edit_index"].tolist() == list(range(6))
    assert found["z"].isna().tolist() == [False, *[True] * 5]
    assert set(found["held"]) == {2}  # in single rounds the editor holds the last batch


def test_a_run_killed_while_it_observes_observes_again(tmp_path: Path, monkeypatch) -> None:
    from lib.editors.finetune import FineTune

    def breaks(self, stream, keys=None):
        yield next(says(self, stream))
        raise KeyboardInterrupt

    run, store = smoke_runs("zsre-causal", single=True)["FT"], Store(tmp_path)
    monkeypatch.setattr(FineTune, "observe", breaks)
    with pytest.raises(KeyboardInterrupt):
        execute(run, store, Resources(checkpoint_seconds=0.0), LineProgress())
    monkeypatch.setattr(FineTune, "observe", says)
    assert execute(run, store, Resources(), LineProgress())
    assert len(store.finished(run).observations) == 6


def test_most_editors_observe_nothing(tmp_path: Path) -> None:
    study = Study.open("melo", "smoke", output=tmp_path, device="cpu")
    run = smoke_runs("zsre-causal", single=True)["FT"]
    study.runs = [run]
    assert execute(run, study.store, Resources(), LineProgress())
    assert study.finished(run).observations.empty
    assert study.observations().empty and "run" in study.observations()
    assert len(study.records()) == 2 * len(study.records().query("moment == 'own'")) > 0


def test_inference_is_timed_before_and_after_editing(tmp_path: Path) -> None:
    run, store = smoke_runs("zsre-causal", single=True)["LoRA"], Store(tmp_path)
    assert execute(run, store, Resources(), LineProgress())
    timed = store.finished(run).manifest["inference"]
    assert timed["repeats"] == 2
    assert timed["base_seconds"] > 0 and timed["edited_seconds"] > 0
    plain = smoke_runs("zsre-causal")["FT"]
    assert execute(plain, store, Resources(), LineProgress())
    assert "inference" not in store.finished(plain).manifest


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gptj", "tiny-t5", "tiny-bert"])
def test_every_kind_of_backbone_can_be_timed(name: str) -> None:
    from lib.backbones.sources import loading
    from lib.evaluation import timing

    assert timing.forward_seconds(loading.load(name), ["Ash?", "Dove Point?"], repeats=1) > 0


def test_progress_counts_the_stream_in_single_rounds(tmp_path: Path) -> None:
    class Counting(LineProgress):
        done: list[int] = []  # noqa: RUF012

        def advance(self, done: int) -> None:
            self.done.append(done)

    run = smoke_runs("zsre-causal", single=True)["FT"]
    assert execute(run, Store(tmp_path), Resources(), Counting())
    assert Counting.done == [2, 4, 6]


def test_a_backbone_comes_in_the_dtype_of_its_setting() -> None:
    import torch

    shared, spec = Resources(), smoke_runs("zsre-causal")["FT"].spec
    assert shared.materials(spec).backbone.dtype == torch.float32
    loaded = shared.materials(spec | {"dtype": "bfloat16"}).backbone
    assert next(loaded.model.parameters()).dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["counterfact", "zsre"])
def test_embedded_edits_are_chosen_by_what_the_backbone_knows(name: str, monkeypatch) -> None:
    from lib.data import datasets
    from lib.data.embedded import facts as embedded
    from lib.data.embedded.known import Knowledge
    from lib.data.records import Dataset
    from lib.runs import resources

    asked, loaded = [], []
    monkeypatch.setattr(embedded, "candidates", lambda dataset: [f"facts of {dataset}"])

    def known_facts(backbone, facts, *, cap, forms):
        asked.append((backbone.name, facts, cap, forms))
        return Knowledge({}, forms or ("question",))

    def load(dataset, *, known, **options):
        loaded.append((dataset, known))
        return Dataset(dataset)

    monkeypatch.setattr(resources, "known_facts", known_facts)
    monkeypatch.setattr(datasets, "load", load)
    spec = smoke_runs("zsre-causal")["FT"].spec | SINGLE | {"known": 40}
    spec = spec | {"stream": {"n_upstream": 0}}
    spec["dataset"] = {"name": name, "source": "embedded"}
    shared, backbone = Resources(), loading.load(spec["backbone"])
    known = resources.known_of(spec, backbone)
    for _ in range(2):
        resources.chosen_of(shared.read, spec, None, known)
    forms = ("canonical",) if name == "counterfact" else None
    assert asked == [(spec["backbone"], [f"facts of {name}"], 40, forms)]
    assert [what for what, known in loaded if known is not None] == [name]
    for source in ("files", "hub"):
        assert (
            resources.known_of(spec | {"dataset": {"name": name, "source": source}}, None) is None
        )
    invented = {"name": "invented", "source": "embedded"}
    assert resources.known_of(spec | {"dataset": invented}, None) is None
