"""What a run needs on a card, and which runs a card leaves out."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lib.errors import UsageError
from lib.runs import machine, plan
from lib.runs.schedule import memory
from lib.runs.study import Study

GPT2_XL, GPT_J = 1_557_611_200, 6_050_882_784  # published numbers of parameters


def runs(paper: str, setting: str) -> dict[str, plan.Run]:
    planned = plan.runs(paper, "paper", source="hub", seeds=1, device="cuda")
    return {run.editor: run for run in planned if run.setting == setting and not run.sweep}


def test_weights_are_the_published_number_of_parameters() -> None:
    wide = memory.need_of(runs("comeba_hk", "cf-single")["MEMIT"], 80)
    half = memory.need_of(runs("comeba_hk", "cf-single-gptj")["MEMIT"], 80)
    assert wide.weights == 4 * GPT2_XL and half.weights == 2 * GPT_J
    assert wide.solves == 3 * 8 * 6400**2  # float64 matrices of the MLP's width


def test_activations_are_what_autograd_keeps_of_a_real_pass() -> None:
    from lib.backbones.sources import shapes

    rows, tokens, block = 3, 20, 9
    counted = memory._activations("gpt2", torch.float32, rows, tokens, ("decoder", block))
    model = shapes.drawn(shapes.PUBLISHED["gpt2"](), torch.float32, "cpu").base_model
    kept: dict[int, int] = {}
    own = {parameter.data_ptr() for parameter in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    states = []  # so that storages live until they are counted
    model.h[block].register_forward_pre_hook(
        lambda _module, given: (given[0].detach().requires_grad_(), *given[1:])
    )
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        states.append(model(torch.zeros(rows, tokens, dtype=torch.long), use_cache=False))
    logits = 3 * rows * memory.ANSWER * 50257 * 4
    assert counted - logits == pytest.approx(sum(kept.values()), rel=0.15)


def test_more_edits_longer_rows_and_larger_cards() -> None:
    run = runs("melo", "hallucination")["FT"]
    need = memory.need_of(run, 80)
    longer = memory._activations("gpt2-xl", torch.float32, 4, 600, ("decoder", 35))
    assert longer > 1.9 * memory._activations("gpt2-xl", torch.float32, 4, 300, ("decoder", 35))
    small = memory.need_of(run, 8)
    assert small.kept == 2**30 < need.kept  # an eighth of the card at most
    assert need.gigabytes == pytest.approx(
        (need.weights + need.trained + need.kept + memory.CONTEXT
         + max(need.activations + need.solves, need.scoring)) / 2**30
    )  # fmt: skip
    unknown = replace(run, spec=run.spec | {"backbone": "tiny-gpt2"})
    assert memory.need_of(unknown, 80) is None
    assert memory.counted([unknown], 80) == [unknown]


@pytest.mark.parametrize("gigabytes", [23.7, 80.0])
def test_a_card_leaves_out_what_it_cannot_hold_and_the_others_go_on(
    gigabytes: float, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("STUDY_GPU_MEMORY", str(gigabytes))
    study = Study.open("malmen", "paper", output=tmp_path, seeds=1, device="cuda")
    large = {run.title for run in study.unique_runs() if run.gigabytes > gigabytes}
    assert study.left_out().keys() == large == study.errors().keys()
    assert {run.title for run in study.to_do()}.isdisjoint(large) and study.to_do()
    assert bool(large) == (gigabytes < 24)
    assert ("left out" in set(study.plan()["state"])) == bool(large)
    for reason in study.errors().values():
        assert f"the card has {gigabytes} GiB" in reason


def test_a_plan_for_a_card_that_is_not_here_needs_its_memory(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("STUDY_GPU_MEMORY", raising=False)
    monkeypatch.setattr(machine, "default_device", lambda: "cpu")
    with pytest.raises(UsageError, match="--gpu-memory"):
        Study.open("melo", "paper", output=tmp_path, device="cuda")
