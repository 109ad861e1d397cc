"""A borrowed card in eight minutes: does every editor run, how much does it take, is it repeatable?

    python benchmarks/gpu_check.py --store DIR       # random weights of four published shapes
    python benchmarks/gpu_check.py --tiny            # on a processor, tiny shapes: a minute

For each shape each editor makes two batches of edits on random weights: true peak memory, seconds
per edit, the same with TF32, and whether a resumed run (one batch, saved, loaded into a fresh
editor, the other batch) ends with the weights and answers of an unbroken one. A failure is a row
of the table. What time is left goes to the `gpu` profile's runs, paper after paper; they resume at
the next call (`--store`: their outputs folder). Prints one table and leaves it as `gpu_check.csv`
in the store; exit status 1 if an editor failed or did not resume.
"""

import argparse
import contextlib
import gc
import random
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from lib.api.choices import choose
from lib.backbones.backbone import Backbone, prepare
from lib.backbones.sources import loading, shapes
from lib.backbones.text_states import key_width
from lib.data.corpus import Corpus
from lib.data.records import Edit, Probe, Stream
from lib.data.training import TrainingFacts
from lib.editors import REGISTRY, build, class_of, configured
from lib.editors.base import Editor, editor_of
from lib.runs import machine
from lib.runs.settings import ROOT, papers

# Shape, precision, and the tiny model whose tokenizer, and on a processor whose weights, it takes.
SHAPES = (
    ("gpt2-xl", torch.float32, "tiny-gpt2"),
    ("gpt-j-6b", torch.bfloat16, "tiny-gptj"),
    ("llama-2-7b", torch.bfloat16, "tiny-llama"),
    ("t5-xl-ssm-nq", torch.bfloat16, "tiny-t5"),
)
# A few steps of everything: seconds per edit are those of a step, times the steps of the study.
SHORT = {
    "steps": 3, "value_steps": 3, "epochs": 1, "batch_rows": 4, "train_m": 4, "iterations": 2,
    "classifier_iterations": 2, "statistics_documents": 0, "memory_tokens": 2_000,
    "memory_rows": 200,
}  # fmt: skip
PER_DIMENSION = 3  # tokens of the key statistics for each of the keys' dimensions: invertible
BATCH, BATCHES = 2, 2
TOLERANCE = 1e-3  # relative, of the weights of a resumed edit: kernels that add in any order


def edits(count: int, start: int = 0) -> tuple[Edit, ...]:
    """Invented facts; random weights know none of them."""
    return tuple(
        Edit(
            identity=f"pier:{number}",
            prompt=f"Which pier does boat {number} land at?",
            target=f"pier {number % 7}",
            subject=f"boat {number}",
            rephrases=(f"Boat {number} lands at which pier?",),
            relation=f"pier:{number}",
            locality=(Probe(f"sky:{number}", f"what colour is sky {number}?", "blue", "upstream"),),
        )
        for number in range(start, start + count)
    )


def backbone_of(shape: str, dtype: torch.dtype, relative: str, device: str, tiny: bool) -> Backbone:
    """Random weights of a published shape with a small tokenizer; with `tiny` the small model."""
    small = loading.load(relative, device=device)
    if tiny:
        return small
    model = shapes.drawn(shapes.PUBLISHED[shape](), dtype, device)
    if model.config.model_type == "t5" and model.lm_head.weight is model.shared.weight:
        own = model.shared.weight.detach().clone()  # as the checkpoints have it
        model.lm_head.weight = torch.nn.Parameter(own, requires_grad=False)
    return replace(
        small, name=shape, model=prepare(model, small.tokenizer, torch.device(device)),
        dtype=dtype, content=f"random weights of {shape}", prefix="",
    )  # fmt: skip


def answerer(backbone: Backbone, relative: str, folder: Path) -> str:
    """The name of a small model that can answer for the backbone (SERAC)."""
    if backbone.name == relative:
        return relative
    small = loading.load(relative)
    config = small.model.config
    config.vocab_size = backbone.model.config.vocab_size
    shapes.drawn(config, torch.float32, "cpu").save_pretrained(folder)
    small.tokenizer.save_pretrained(folder)
    return f"dir:{folder}"


def text(tokens: int) -> Corpus:
    """Random letters, at least one token for three of them: keys that point everywhere."""
    draw, words, documents = random.Random(0), 100, []
    for _ in range(tokens // words + 20):
        letters = ("".join(draw.choices(string.ascii_lowercase, k=4)) for _ in range(words))
        documents.append(" ".join(letters))
    return Corpus("random letters", tuple(documents))


def configuration(kind: str, backbone: Backbone, second: str) -> dict[str, Any] | None:
    """The study's settings of an editor on a shape, or on the nearest one that has some, with few
    steps; None where the editor does not take such a model. `second`: who answers for SERAC."""
    if backbone.family.kind not in class_of(kind).kinds:
        return None
    serac = {"classifier": "tiny-distilbert", "counterfactual": second, "classifier_rows": 4}
    found = choose(kind, backbone, serac if kind == "serac" else {}).config
    known = vars(configured(kind, found))
    short = {name: value for name, value in SHORT.items() if name in known}
    if "statistics_tokens" in known:
        short["statistics_tokens"] = PER_DIMENSION * key_width(backbone, 0)
    return found | short


@contextlib.contextmanager
def tf32(on: bool) -> Iterator[None]:
    """Matrix products of float32 in TF32, or not."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = on
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def made(kind: str, backbone: Backbone, config: dict[str, Any]) -> Editor:
    """An editor, its statistics or networks made."""
    facts = edits(8, start=100)
    editor = build(
        kind, backbone, config, corpus=text(config.get("statistics_tokens", 5000)),
        training=TrainingFacts("invented", facts, facts[:2]),
    )  # fmt: skip
    editor.fit(Stream("check", edits(BATCH * BATCHES), BATCH))
    return editor


def state(editor: Editor) -> list[torch.Tensor]:
    """Everything that the edits changed, in order."""
    groups = editor.tensors()
    return [groups[group][name].detach().cpu() for group in sorted(groups) for name in
            sorted(groups[group])]  # fmt: skip


def run_editor(kind: str, backbone: Backbone, config: dict[str, Any]) -> dict[str, Any]:
    """One editor on one backbone: what the table says of it."""
    device, batches = str(backbone.device), [edits(BATCH, start=BATCH * n) for n in range(BATCHES)]
    row: dict[str, Any] = {}
    with machine.PeakMemory(device) as memory:
        editor = made(kind, backbone, config)
        try:
            editor.edit(batches[0])  # kernels are chosen at the first call
            began = time.perf_counter()
            editor.edit(batches[1])
            if backbone.device.type == "cuda":
                torch.cuda.synchronize()
            row["seconds_per_edit"] = (time.perf_counter() - began) / BATCH
            unbroken = state(editor)
            editor.rollback()
            with tf32(True):
                began = time.perf_counter()
                editor.edit(batches[0])
                if backbone.device.type == "cuda":
                    torch.cuda.synchronize()
                row["seconds_per_edit_tf32"] = (time.perf_counter() - began) / BATCH
            editor.rollback()
            editor.edit(batches[0])
            with tempfile.TemporaryDirectory() as folder:
                editor.save(Path(folder) / "editor")
                editor.close()
                editor = made(kind, backbone, config)
                editor.load(Path(folder) / "editor")
            editor.edit(batches[1])
            resumed = state(editor)
        finally:
            editor.close()
    row["peak_gib"] = memory.bytes / 2**30
    pairs = list(zip(unbroken, resumed, strict=True))
    row["resumed_differs_by"] = max(
        (float((a.double() - b.double()).norm() / a.double().norm().clamp_min(1e-30))
         for a, b in pairs if a.is_floating_point()), default=0.0,
    )  # fmt: skip
    row["finite"] = all(bool(a.isfinite().all()) for a in unbroken if a.is_floating_point())
    return row


def check(shape: tuple, device: str, tiny: bool, kinds: list[str], ends: float) -> Iterator[dict]:
    """The rows of one shape, as long as there is time."""
    name, dtype, relative = shape
    backbone = backbone_of(name, dtype, relative, device, tiny)
    held = tempfile.TemporaryDirectory()
    second = answerer(backbone, relative, Path(held.name))
    for kind in kinds:
        row = {"shape": name, "editor": kind, "error": ""}
        if time.monotonic() > ends:
            yield row | {"error": "no time was left"}
            continue
        try:
            config = configuration(kind, backbone, second)
            if config is None:
                continue
            row |= run_editor(kind, backbone, config)
        except Exception as error:  # the others go on
            row["error"] = f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"
            if left := editor_of(backbone):
                with contextlib.suppress(Exception):
                    left.close()
        yield row
    held.cleanup()
    del backbone
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def runs_until(ends: float, store: Path) -> None:
    """The `gpu` profile's runs, paper after paper, until time is up; a later call goes on."""
    for paper in papers():
        left = ends - time.monotonic()
        if left < 30:
            return
        command = [sys.executable, "-m", "lib", "--profile", "gpu", "--only", paper, "--seeds", "1"]
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run([*command, "--output", str(store)], cwd=ROOT, timeout=left, check=False)


def main() -> int:
    """Prints the table; the runs' own lines follow."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--only", help="editors, comma separated", default=",".join(REGISTRY))
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--store", type=Path, help="where the gpu profile's runs go")
    chosen = parser.parse_args()
    device = machine.default_device()
    tiny = chosen.tiny or device == "cpu"
    began = time.monotonic()
    ends, rows = began + 60 * chosen.minutes, []
    for shape in SHAPES:
        for row in check(shape, device, tiny, chosen.only.split(","), ends):
            rows.append(row)
            print(row, file=sys.stderr, flush=True)
    table = pd.DataFrame(rows)
    print(table.to_string(index=False))
    if chosen.store is not None:
        chosen.store.mkdir(parents=True, exist_ok=True)
        table.to_csv(chosen.store / "gpu_check.csv", index=False)
        if not tiny:
            runs_until(ends, chosen.store)
    bad = table["error"].ne("") | ~(table.get("resumed_differs_by", 0.0) <= TOLERANCE)
    return int(bad.any())


if __name__ == "__main__":
    sys.exit(main())
