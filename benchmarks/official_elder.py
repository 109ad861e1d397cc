"""ELDER beside a plain transcription of the official layers in a plain loop: time, memory, results.

    python benchmarks/official_elder.py           # SmolLM2-135M, float32, a few minutes
    python benchmarks/official_elder.py --tiny    # a random tiny model: for the equalities

The official repository holds layers and no loop; both sides follow elder 2.3 to 2.8, the official
one as its layers and MELO's scripts do: whole passes with `labels`, every expert of every layer by
itself, codes compared one by one. Prints two tables; exit status 1 if any two results differ.
"""

import argparse
import copy
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import psutil
import torch
from speed_setting import invented_stream
from speed_timing import Agreement, Measured, compare
from torch import Tensor, nn
from torch.nn import functional

from lib.backbones.backbone import Backbone
from lib.backbones.encoding import IGNORED, answer_ids, pad, prompt_ids
from lib.backbones.sources import loading
from lib.data.records import Edit
from lib.editors import build, settings_of
from lib.editors.adapters.elder import Elder
from lib.evaluation.evaluator import Evaluator, Protocol
from lib.runs import machine

HEADS = (
    ("what", "official CPU s", "project CPU s", "ratio", "official wall s", "project wall s",
     "results equal"),
    ("peak beyond the loaded model", "official MiB", "project MiB", "project / official"),
)  # fmt: skip
TOLERANCE = 2e-3
"""Relative, of losses and trained parameters: Adam amplifies the last digits of float32."""


class Size(NamedTuple):
    """A backbone, the steps of a batch, and repeats."""

    backbone: str
    steps: int
    repeats: int


FULL = Size("smollm2-135m", steps=10, repeats=3)
TINY = Size("tiny-llama", steps=6, repeats=1)


# -- the official side -----------------------------------------------------------------------------


@dataclass
class Shared:
    """What the released layers keep in globals: the query's place, and what the gates decided."""

    key: Tensor
    training: bool = True
    log_scores: list[Tensor] = None
    chosen: list[Tensor] = None
    scope: Tensor | None = None


class Mixture(nn.Module):
    """A target layer: N small LoRAs, all computed for all tokens, stacked and weighed."""

    def __init__(self, inner: nn.Linear, pool: "Official", place: int) -> None:
        super().__init__()
        self.inner, self.pool, self.place = inner, pool, place

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, d_in] to [B, T, d_out]."""
        pool, shared, result = self.pool, self.pool.shared, self.inner(x)
        low = x.float()
        parts = [
            pool.scale * ((low @ a) @ b)
            for a, b in zip(pool.a[self.place], pool.b[self.place], strict=True)
        ]
        scores = shared.log_scores[self.place].exp() * shared.chosen[self.place]
        mixed = torch.einsum("bn,bntd->btd", scores, torch.stack(parts, dim=1))
        if shared.scope is None:
            return result + mixed.to(result.dtype)
        rows = [
            result[row] + mixed[row].to(result.dtype) if inside else result[row]
            for row, inside in enumerate(shared.scope.tolist())
        ]
        return torch.stack(rows)


class Official:
    """The loop: a new Adam per batch, whole passes, gates one after the other."""

    def __init__(self, editor: Elder, backbone: Backbone) -> None:
        config, self.backbone, self.model = editor.config, backbone, backbone.model
        self.config, self.allocation = config, editor.allocation
        self.scale = config.alpha / config.rank
        read = [editor.lora.read(expert) for expert in range(config.n_experts)]
        paths = list(editor.lora.layers)
        self.a, self.b = (
            [[nn.Parameter(one[f"{path}.{letter}"].T.clone()) for one in read] for path in paths]
            for letter in "AB"
        )
        routers = zip(editor.router_weight.detach(), editor.router_bias.detach(), strict=True)
        self.gates = [(nn.Parameter(w.clone()), nn.Parameter(b.clone())) for w, b in routers]
        self.memory: list[Tensor] = []
        self.shared = Shared(torch.empty(0))
        for place, path in enumerate(paths):
            parent, _, name = path.rpartition(".")
            layer = self.model.get_submodule(path)
            setattr(self.model.get_submodule(parent), name, Mixture(layer, self, place))
        sensor = self.model.get_submodule(editor.sensor_path)
        sensor.register_forward_pre_hook(self._sense)
        self.start = [copy.deepcopy(part) for part in (self.a, self.b, self.gates)]

    def reset(self) -> "Official":
        """Before the first edit again."""
        self.a, self.b, self.gates = (copy.deepcopy(part) for part in self.start)
        self.memory = []
        return self

    def parameters(self) -> list[Tensor]:
        """A and B of each layer and expert, then the gates."""
        layers = zip(self.a, self.b, strict=True)
        experts = [p for a, b in layers for group in (a, b) for p in group]
        return [*experts, *(p for gate in self.gates for p in gate)]

    def _sense(self, _module: nn.Module, inputs: tuple[Tensor]) -> None:
        shared = self.shared
        query = inputs[0][torch.arange(len(shared.key)), shared.key].detach().float()
        shared.log_scores, shared.chosen, shared.scope = [], [], None
        for weight, bias in self.gates:
            scores = torch.softmax(functional.linear(query, weight, bias), dim=-1)
            best = scores.topk(self.config.k, dim=-1).indices
            shared.chosen.append(torch.zeros_like(scores).scatter(-1, best, 1.0))
            shared.log_scores.append(scores.log())
        if not shared.training:
            codes = torch.cat(shared.chosen, dim=1).bool()
            apart = (codes[:, None] ^ torch.cat(self.memory)[None]).sum(dim=-1)
            shared.scope = apart.min(dim=1).values < self.config.epsilon

    def rows(self, edits: Sequence[Edit]) -> dict[str, Tensor]:
        """Prompt and answer of each edit, right-padded, with -100 outside the answer; sets the
        place of the query."""
        heads = [prompt_ids(self.backbone, edit.prompt) for edit in edits]
        tails = [answer_ids(self.backbone, edit.target) for edit in edits]
        whole = [head + tail for head, tail in zip(heads, tails, strict=True)]
        labels = [[IGNORED] * len(head) + tail for head, tail in zip(heads, tails, strict=True)]
        self.shared.key = torch.tensor([len(head) - 1 for head in heads])
        return {
            "input_ids": pad(whole, self.backbone.pad_id),
            "attention_mask": pad([[1] * len(row) for row in whole], 0),
            "labels": pad(labels, IGNORED),
        }

    def edit(self, edits: Sequence[Edit]) -> list[float]:
        """One batch (elder 2.7); the first and the last loss."""
        rows, history = self.rows(edits), []
        wanted = torch.stack([self.allocation.of(edit.target) for edit in edits])
        optimiser = torch.optim.Adam(self.parameters(), lr=self.config.lr)
        self.shared.training = True
        for step in range(self.config.steps):
            loss = self.model(**rows, use_cache=False).loss
            for layer, scores in enumerate(self.shared.log_scores):
                guide = -(scores * wanted[:, layer]).sum(dim=-1).mean()
                loss = loss + self.config.guide_weight * guide
            if step == self.config.steps - 1:
                self.memory.append(torch.cat(self.shared.chosen, dim=1).bool())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            history.append(loss.item())
        return [history[0], history[-1]]

    @torch.no_grad()
    def evaluate(self, batches: Sequence[Sequence[Edit]]) -> list[tuple[bool, float]]:
        """Of each row: whether every token is right, and the mean negative log-likelihood."""
        found, self.shared.training = [], False
        for batch in batches:
            rows = self.rows(batch)
            logits = self.model(**rows, use_cache=False).logits[:, :-1]
            labels = rows["labels"][:, 1:]
            for scores, label in zip(logits, labels, strict=True):
                at = label != IGNORED
                right = bool((scores[at].argmax(dim=-1) == label[at]).all())
                found.append((right, float(functional.cross_entropy(scores[at], label[at]))))
        return found


# -- the project's side ----------------------------------------------------------------------------


class Project:
    """The same by the project's editor and evaluator."""

    def __init__(self, editor: Elder, size: Size) -> None:
        self.editor, self.size, self.stream = editor, size, invented_stream()
        self.evaluator: Evaluator | None = None

    def reset(self) -> "Project":
        """See `Official.reset`."""
        self.editor.rollback()
        self.editor.fit(self.stream)
        return self

    def parameters(self) -> list[Tensor]:
        """In the order and form of `Official.parameters`."""
        editor, found = self.editor, []
        read = [editor.lora.read(expert) for expert in range(editor.config.n_experts)]
        for path in editor.lora.layers:
            found += [one[f"{path}.{letter}"].T for letter in "AB" for one in read]
        gates = zip(*(part.detach() for part in editor.routers), strict=True)
        return [*found, *(part for gate in gates for part in gate)]

    def edit(self, edits: Sequence[Edit]) -> list[float]:
        """See `Official.edit`."""
        report = self.editor.edit(edits)
        return [report.loss_first, report.loss_last]

    def new_evaluator(self) -> "Project":
        """Nothing is kept of any row."""
        protocol = Protocol(decode=False, rivals=False, evaluation_batch=32)
        self.evaluator = Evaluator(self.editor, self.stream, protocol)
        return self

    def later(self) -> "Project":
        """Rows are known, and every route is new."""
        self.evaluator.forget()
        return self

    def evaluate(self) -> list[tuple[bool, float]]:
        """See `Official.evaluate`."""
        rows = [
            row
            for subset in ("edits", "holdout")
            for row in self.evaluator.records(subset, "end", self.editor.n_edits)
        ]
        return [(row["answer_accuracy"] == 1, row["answer_nll"]) for row in rows]


# -- seconds and memory ----------------------------------------------------------------------------


def editor_of(size: Size) -> tuple[Elder, Backbone]:
    """The project's editor as the settings have it, and a backbone of the same weights."""
    values = {**settings_of("elder", size.backbone), "steps": size.steps, "lr": 2e-3}
    loaded = [loading.load(size.backbone, dtype=torch.float32) for _ in range(2)]
    return build("elder", loaded[0], values), loaded[1]


def trained(one: tuple[list[float], list[Tensor]], other: Any) -> Agreement:
    """Losses, and parameters as one vector."""
    left, right = (torch.cat([part.flatten() for part in side[1]]) for side in (one, other))
    errors = [abs(a - b) / abs(a) for a, b in zip(one[0], other[0], strict=True)]
    error = max(*errors, float((left - right).norm() / left.norm()))
    return Agreement(error <= TOLERANCE, f"losses, parameters within {TOLERANCE:.0e} ({error:.1e})")


def scored(one: list[tuple[bool, float]], other: Any) -> Agreement:
    """Right or wrong exactly, likelihoods within the tolerance."""
    same = [a[0] == b[0] for a, b in zip(one, other, strict=True)]
    error = max(abs(a[1] - b[1]) / max(abs(a[1]), 1.0) for a, b in zip(one, other, strict=True))
    sense = f"{len(same)} rows exactly, NLL within {TOLERANCE:.0e} ({error:.1e})"
    return Agreement(all(same) and error <= TOLERANCE, sense)


def lines(size: Size) -> Iterator[tuple[bool, tuple[str, ...]]]:
    """Whether the results are equal, and the rows of the first table."""
    editor, other = editor_of(size)
    project = Project(editor, size).reset()
    official, stream = Official(editor, other), project.stream
    batches, many = list(stream.batches()), stream.batch_size
    held = [stream.holdout[at : at + many] for at in range(0, len(stream.holdout), many)]
    walls: dict[str, list[float]] = {"official": [], "project": []}

    def measured(name: str, prepare: Callable[[], Any], work: Callable[[Any], Any]) -> Callable:
        def run() -> Measured:
            subject = prepare()
            began, cpu = time.perf_counter(), time.process_time()
            result = work(subject)
            spent = time.process_time() - cpu
            walls[name].append(time.perf_counter() - began)
            return spent, result

        return run

    def line(
        what: str, theirs: tuple[Callable, Callable], ours: tuple[Callable, Callable], same: Any
    ) -> tuple[bool, tuple[str, ...]]:
        for seen in walls.values():
            seen.clear()
        sides = measured("official", *theirs), measured("project", *ours)
        done = compare(what, *sides, same, size.repeats)
        wall = (f"{sorted(seen[1:])[len(seen[1:]) // 2]:.3g}" for seen in walls.values())
        cells = done.cells()
        return done.agreement.equal, (*cells[:4], *wall, cells[4])

    def edited(subject: Official | Project) -> tuple[list[float], list[Tensor]]:
        return subject.edit(batches[0]), [part.detach().clone() for part in subject.parameters()]

    what = f"edit: {len(batches[0])} facts, {size.steps} steps"
    yield line(what, (official.reset, edited), (project.reset, edited), trained)
    for side in (official.reset(), project.reset()):
        for batch in batches:
            side.edit(batch)

    def theirs(_: None) -> list[tuple[bool, float]]:
        return official.evaluate([*batches, *held])

    none = (lambda: None, theirs)
    what = f"evaluation of {len(stream.edits) + len(stream.holdout)} rows"
    for when, prepare in (("first time", project.new_evaluator), ("later", project.later)):
        yield line(f"{what}, {when}", none, (prepare, Project.evaluate), scored)


def peak(side: str, size: Size) -> float:
    """MiB that editing a batch and evaluating all rows add to this process at most."""
    editor, other = editor_of(size)
    project = Project(editor, size).reset()
    official, batch = Official(editor, other), project.stream.edits[:4]
    process, done = psutil.Process(), threading.Event()
    seen = [process.memory_info().rss]  # loading had a peak of its own, so no high-water mark

    def watch() -> None:
        while not done.wait(0.002):
            seen.append(process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    if side == "official":
        official.edit(batch)
        rows = [*project.stream.edits, *project.stream.holdout]
        official.evaluate([rows[at : at + 4] for at in range(0, len(rows), 4)])
    else:
        project.edit(batch)
        project.new_evaluator().evaluate()
    done.set()
    watcher.join()
    return (max(seen) - seen[0]) / 2**20


def memory(tiny: bool) -> tuple[str, ...]:
    """The row of the second table: each side in a process of its own."""
    found = []
    for side in ("official", "project"):
        command = [sys.executable, __file__, "--peak", side, *["--tiny"] * tiny]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found.append(float(done.stdout))
    share = f"{found[1] / found[0]:.2f}" if found[0] else "-"
    return "edit of a batch, evaluation", *(f"{each:,.0f}" for each in found), share


def show(cells: Sequence[str]) -> None:
    """One line of a table."""
    print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Prints the tables and says by the exit status whether all results were equal."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="a tiny random model, one repeat")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    size = TINY if asked.tiny else FULL
    if asked.peak:
        print(peak(asked.peak, size))
        return
    print(f"{size.backbone}, float32, {machine.provenance('cpu')['threads']} threads\n")
    show(HEADS[0])
    print("|---" * len(HEADS[0]) + "|")
    equal = True
    for same, cells in lines(size):
        show(cells)
        equal &= same
    print()
    show(HEADS[1])
    print("|---" * len(HEADS[1]) + "|")
    show(memory(asked.tiny))
    sys.exit(0 if equal else 1)


if __name__ == "__main__":
    main()
