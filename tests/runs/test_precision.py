"""A processor without arithmetic in a setting's dtype: its runs take float32, and say why."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lib import __main__ as command_line
from lib.report.pages import reports
from lib.runs import machine, plan
from lib.runs.settings import papers
from lib.runs.study import Study
from papers import common
from tests.processes import PATIENCE

SETTING, EDITOR = "zsre-causal", "FT"
WHY = "the processor has no bfloat16 arithmetic that PyTorch can use"
# Intel's Sapphire Rapids, AMD's Zen 4, a processor with AVX2 alone, one with AVX-512 alone
AMX = {"architecture": "x86_64", "amx_bf16": True, "avx512_bf16": True, "avx512_fp16": True}
ZEN4 = {"architecture": "x86_64", "avx512_bf16": True, "avx512_fp16": False}
AVX2 = {"architecture": "x86_64", "avx2": True, "avx512_bf16": False}
AVX512 = {"architecture": "x86_64", "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}
ARM = {"architecture": "aarch64", "bf16": True, "fp16_arith": True}


@pytest.fixture
def on_processor(monkeypatch):
    """Sets what the processor answers, and what limits its libraries."""

    def sets(found: dict, aten: str = "AVX512", onednn: bool = True, **limits: str) -> None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: aten)
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: onednn)
        for name in ("DNNL_MAX_CPU_ISA", "ONEDNN_MAX_CPU_ISA"):
            monkeypatch.delenv(name, raising=False)
        for name, value in limits.items():
            monkeypatch.setenv(name, value)

    return sets


@pytest.mark.parametrize(
    ("found", "limits", "bfloat16", "float16"),
    [
        (AMX, {}, True, True),
        (ZEN4, {}, True, False),
        (AVX2, {"aten": "AVX2"}, False, False),
        (AVX512, {}, False, False),
        (ARM, {"aten": "DEFAULT"}, True, True),
        (ARM, {"aten": "DEFAULT", "onednn": False}, False, False),
        (AMX, {"aten": "AVX2"}, False, False),
        (AMX, {"DNNL_MAX_CPU_ISA": "AVX2"}, False, False),
        (AMX, {"DNNL_MAX_CPU_ISA": "avx512_core"}, False, False),
        (AMX, {"DNNL_MAX_CPU_ISA": "AVX512_CORE_BF16"}, True, False),
        (AMX, {"DNNL_MAX_CPU_ISA": "AVX512_CORE_AMX"}, True, True),
        (AMX, {"DNNL_MAX_CPU_ISA": "ALL"}, True, True),
        (AMX, {"ONEDNN_MAX_CPU_ISA": "AVX2", "DNNL_MAX_CPU_ISA": "ALL"}, False, False),
        (AMX, {"ONEDNN_MAX_CPU_ISA": "", "DNNL_MAX_CPU_ISA": "AVX2"}, False, False),
    ],
)
def test_the_processor_is_asked_and_its_limits_count(
    on_processor, found: dict, limits: dict, bfloat16: bool, float16: bool
) -> None:
    on_processor(found, **limits)
    assert machine.cpu_computes_in("float32")
    assert machine.cpu_computes_in("bfloat16") == bfloat16
    assert machine.cpu_computes_in("float16") == float16


def test_an_imitated_avx2_machine_counts_as_one_without() -> None:
    asked = "from lib.runs import machine; print(machine.cpu_computes_in('bfloat16'))"
    limits = {"DNNL_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    done = subprocess.run(
        [sys.executable, "-c", asked], env={**os.environ, **limits}, cwd=Path(__file__).parents[2],
        capture_output=True, text=True, timeout=PATIENCE, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "False"


@pytest.fixture
def runs(monkeypatch):
    """The main run of a tiny setting that asks for a dtype, on a processor with or without it."""
    described = plan.profile_of

    def planned(dtype: str | None, *, able: bool, device: str = "cpu") -> plan.Run:
        def profile_of(paper: str, profile: str, *overrides):
            document, sourced = described(paper, profile, *overrides)
            if profile == "smoke" and dtype is not None:
                document["settings"][SETTING]["dtype"] = dtype
            return document, sourced

        for module in ("plan", "study"):
            monkeypatch.setattr(f"lib.runs.{module}.profile_of", profile_of)
        monkeypatch.setattr(machine, "cpu_computes_in", lambda dtype: able or dtype == "float32")
        found = plan.runs("melo", "smoke", device=device)
        return next(r for r in found if (r.setting, r.editor, r.sweep) == (SETTING, EDITOR, ""))

    return planned


@pytest.mark.parametrize("asked", ["bfloat16", "float16"])
def test_a_processor_without_the_arithmetic_takes_float32(runs, asked: str) -> None:
    able, without = runs(asked, able=True), runs(asked, able=False)
    assert (able.spec["dtype"], able.asked, able.replaced) == (asked, "", {})
    assert without.spec == able.spec | {"dtype": "float32"}
    assert without.identity != able.identity
    assert without.replaced == {"asked": asked, "why": WHY.replace("bfloat16", asked)}
    assert without.seconds == plan.FLOAT32_SECONDS * able.seconds > 0


def test_float32_and_gpus_are_left_alone(runs) -> None:
    for dtype in (None, "float32"):
        assert runs(dtype, able=False) == runs(dtype, able=True)
        assert runs(dtype, able=False).spec.get("dtype") == dtype
    on_gpu = runs("bfloat16", able=False, device="cuda")
    assert on_gpu == runs("bfloat16", able=True, device="cuda")
    assert on_gpu.spec["dtype"] == "bfloat16" and not on_gpu.replaced


@pytest.mark.parametrize("able", [True, False])
def test_manifest_and_page_say_what_was_computed_in(runs, tmp_path: Path, able: bool) -> None:
    run = runs("bfloat16", able=able)
    study = Study.open("melo", "smoke", output=tmp_path, device="cpu")
    study.runs = [run]
    assert study.run_missing(quiet=True)
    backbone = study.finished(run).manifest["backbone"]
    listed = common.substitutions(study, SETTING)
    changed = {where: (before, now) for where, before, now in study.departures(SETTING)}
    sentence = f"Computed in float32, not in bfloat16 as this profile asks: {WHY}."
    if able:
        assert backbone["dtype"] == "torch.bfloat16" and not {"asked", "why"} & set(backbone)
        assert "Computed in bfloat16 instead of float32." in listed and sentence not in listed
        assert changed["dtype"] == ("–", "bfloat16") and study.replaced() == []
    else:
        assert backbone["dtype"] == "torch.float32"
        assert (backbone["asked"], backbone["why"]) == ("bfloat16", WHY)
        assert [text for text in listed if "float" in text] == [sentence]
        assert changed["dtype"] == ("–", "float32")


@pytest.mark.parametrize("able", [True, False])
def test_plan_and_start_of_a_run_say_it(tmp_path: Path, monkeypatch, capsys, able: bool) -> None:
    monkeypatch.setattr(machine, "cpu_computes_in", lambda dtype: able or dtype == "float32")
    monkeypatch.setattr(machine, "default_device", lambda: "cpu")
    options = ["--only", "comeba_hk", "--output", str(tmp_path)]
    assert command_line.main([*options, "--plan"]) == 0
    settings = "cf-single, cf-consecutive"
    told = f"float32 instead of bfloat16 in {settings}: {WHY}\n"
    assert (told in capsys.readouterr().out) != able
    monkeypatch.setattr(Study, "run_missing", lambda study, **how: True)
    monkeypatch.setattr(reports, "render_paper", lambda study, options: True)
    monkeypatch.setattr(reports, "write_index", lambda folder: folder / "index.html")
    assert command_line.main([*options, "--jobs", "1"]) == 0
    assert (f"comeba_hk: {told}" in capsys.readouterr().err) != able


def test_laptop_settings_take_the_same_runs_but_for_the_dtype(monkeypatch) -> None:
    for paper in papers():
        found = {}
        for able in (True, False):
            monkeypatch.setattr(machine, "cpu_computes_in", lambda dtype, able=able: able)
            found[able] = plan.runs(paper, "laptop", device="cpu")
        for run, other in zip(found[True], found[False], strict=True):
            assert other.spec.get("dtype", "float32") == "float32"
            assert (run.identity == other.identity) == (run.spec == other.spec)
            assert other.asked == ("" if run.spec == other.spec else run.spec["dtype"])
        assert any(run.spec.get("dtype") == "bfloat16" for run in found[True])
