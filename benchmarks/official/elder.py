"""ELDER beside a plain transcription of the official layers in a plain loop: time, memory, results.

    python benchmarks/official/elder.py           # SmolLM2-135M, float32, a few minutes
    python benchmarks/official/elder.py --tiny    # a random tiny model: for the equalities

The official repository holds layers and no loop; both sides follow elder 2.3 to 2.8, the official
one as its layers and MELO's scripts do: whole passes with `labels`, every expert of every layer by
itself, codes compared one by one. Prints two tables; exit status 1 if any two results differ.
"""

import copy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import beside
import torch
from beside import Agreement, Line, Side, compare, invented_stream
from torch import Tensor, nn
from torch.nn import functional

from lib.backbones.backbone import Backbone
from lib.backbones.encoding import IGNORED, answer_ids, pad, prompt_ids
from lib.backbones.sources import loading
from lib.data.records import Edit
from lib.editors import build, settings_of
from lib.editors.adapters.elder import Elder
from lib.evaluation.evaluator import Evaluator, Protocol

TOLERANCE = 2e-3
"""Relative, of losses and trained parameters: Adam amplifies the last digits of float32."""


class Size(NamedTuple):
    """A backbone, the steps of a batch, and repeats."""

    backbone: str
    steps: int
    repeats: int


FULL = Size("smollm2-135m", steps=10, repeats=3)
TINY = Size("tiny-llama", steps=3, repeats=0)


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

    def __init__(self, editor: Elder) -> None:
        self.editor, self.stream = editor, replace(invented_stream(), upstream=(), near=())
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
        """Before the first edit; nothing is kept of any row."""
        self.reset()
        protocol = Protocol(decode=False, rivals=False, evaluation_batch=32)
        self.evaluator = Evaluator(self.editor, self.stream, protocol)
        return self

    def later(self) -> "Project":
        """Rows are known, and every route is new."""
        self.evaluator.forget()
        return self

    def evaluate_saved(self, folder: Path) -> list[tuple[bool, float]]:
        """Unedited scores, as every run makes them first, and those under the saved edits."""
        self.evaluator.score_unedited()
        self.editor.load(folder)
        return self.evaluate()

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
    error = max(beside.off(one[0], other[0]), beside.apart(one[1], other[1]))
    return Agreement(error <= TOLERANCE, f"losses, parameters within {TOLERANCE:.0e} ({error:.1e})")


def cut(rows: Sequence[Edit]) -> list[Sequence[Edit]]:
    """Rows in batches of four."""
    return [rows[at : at + 4] for at in range(0, len(rows), 4)]


def lines(size: Size) -> Iterator[Line]:
    """The rows of the first table."""
    editor, other = editor_of(size)
    project = Project(editor).reset()
    official, stream = Official(editor, other), project.stream
    batches = list(stream.batches())

    def edited(subject: Official | Project) -> tuple[list[float], list[Tensor]]:
        return subject.edit(batches[0]), [part.detach().clone() for part in subject.parameters()]

    what = f"edit: {len(batches[0])} facts, {size.steps} steps"
    sides = Side(official.reset, edited), Side(project.reset, edited)
    yield compare(what, *sides, trained, size.repeats)
    for side in (official.reset(), project.reset()):
        for batch in batches:
            side.edit(batch)
    rows = [*stream.edits, *stream.holdout]
    what, same = f"evaluation of {len(rows)} rows", beside.scored(TOLERANCE)
    theirs = Side(lambda: cut(rows), official.evaluate)
    with tempfile.TemporaryDirectory() as name:
        editor.save(folder := Path(name))
        first = Side(project.new_evaluator, lambda side: side.evaluate_saved(folder))
        yield compare(f"{what}, first time", theirs, first, same, size.repeats)
    later = Side(project.later, Project.evaluate)
    yield compare(f"{what}, later", theirs, later, same, size.repeats)


def memory(size: Size) -> dict[str, Callable[[str], Callable[[], Any]]]:
    """The row of the second table."""

    def loaded(side: str) -> Callable[[], Any]:
        editor, other = editor_of(size)
        project = Project(editor).reset()
        official, stream = Official(editor, other), project.stream
        rows = [*stream.edits, *stream.holdout]

        def theirs() -> None:
            official.edit(stream.edits[:4])
            official.evaluate(cut(rows))

        def ours() -> None:
            project.new_evaluator().evaluator.score_unedited()
            project.edit(stream.edits[:4])
            project.evaluate()

        return theirs if side == "official" else ours

    return {"edit of a batch, evaluation": loaded}


if __name__ == "__main__":
    beside.main(__doc__, FULL, TINY, lines, memory)
