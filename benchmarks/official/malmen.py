"""MALMEN and MEND beside a plain transcription of the official loop: seconds, memory, results.

    python benchmarks/official/malmen.py           # SmolLM2-135M, float32, about six minutes
    python benchmarks/official/malmen.py --tiny    # a random tiny model: for the equalities

The transcription is written from the steps of the official code (malmen 2.4, 2.10, 10). Prints two
tables; exit status 1 if any two results differ. benchmarks/README.md explains the lines.
"""

import copy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import beside
import torch
from beside import Agreement, Line, Side, apart, compare
from torch import Tensor
from torch.nn import functional

from lib.backbones.backbone import Backbone
from lib.backbones.encoding import IGNORED
from lib.backbones.passes.fact_passes import Pair, edit_pairs, rephrase_pairs, unrelated_pairs
from lib.backbones.passes.kept import Kept
from lib.backbones.passes.logits import FactRows, fact_rows
from lib.backbones.sources import loading
from lib.data import invented
from lib.data.records import Edit
from lib.data.training import TrainingFacts
from lib.editors.hypernet.malmen import Malmen, MalmenConfig, Mend, MendConfig
from lib.editors.hypernet.network import HyperNetworks
from lib.editors.hypernet.training import teacher_forced
from lib.editors.parts.sites import Site

TOLERANCE = 1e-3
"""Relative, of all shifts or all gradients as one vector, against the official steps with their
solve in float64: in float32, as it is timed, LU itself misses by more."""
KINDS = {"MALMEN": (Malmen, MalmenConfig), "MEND": (Mend, MendConfig)}


@dataclass(frozen=True)
class Size:
    """A backbone, the facts at once and the network's rank."""

    backbone: str
    facts: int
    rank: int
    layers: int
    repeats: int


FULL = Size("smollm2-135m", facts=48, rank=256, layers=6, repeats=1)
TINY = Size("tiny-llama", facts=6, rank=8, layers=2, repeats=0)


def facts_of(size: Size) -> list[Edit]:
    """Invented questions, each with a rephrase and an unrelated question."""
    known = invented.questions()
    return [
        replace(edit, rephrases=edit.rephrases[:1], locality=(unrelated,))
        for edit, unrelated in zip(known.edits[: size.facts], known.upstream, strict=False)
    ]


def editor_of(kind: str, backbone: Backbone, size: Size) -> Malmen:
    """An editor of the last blocks whose network is at no special point."""
    method, configuration = KINDS[kind]
    blocks = range(backbone.n_blocks() - size.layers, backbone.n_blocks())
    config = configuration(
        sites=tuple(Site("mlp_out", block) for block in blocks), rank=size.rank, eta=1e-3,
        meta_lr=1e-4,
    )  # fmt: skip
    editor = method(backbone, config, training=TrainingFacts("invented", (), ()), kept=Kept())
    network = editor.new_network()
    torch.manual_seed(0)
    for name, parameter in network.named_parameters():
        if name.endswith(("up", "scale", "shift")):
            parameter.data += 1e-3 * torch.randn_like(parameter)
    editor.use_network(network)
    return editor


class Official:
    """The official trainer's steps, one after the other: whole passes with `labels`, rows through
    files, LU of d x d twice for each layer, shifts added and taken off around every mini-batch."""

    def __init__(self, editor: Malmen, folder: Path) -> None:
        self.backbone, self.config, self.folder = editor.backbone, editor.config, folder
        self.model, self.paths = editor.backbone.model, editor.paths
        self.modules = {path: self.model.get_submodule(path) for path in self.paths}
        self.network: HyperNetworks = copy.deepcopy(editor.network)
        self.sums = editor.name == "MEND"
        self.precision = torch.float32  # of the solve

    def batches(self, pairs: Sequence[Pair]) -> list[FactRows]:
        """Sorted by length, longest first, `batch_rows` at a time."""
        whole = fact_rows(self.backbone, *zip(*pairs, strict=True))
        lengths = whole.encoded.attention_mask.sum(dim=1).tolist()
        order = sorted(range(len(pairs)), key=lambda index: -lengths[index])
        size = self.config.batch_rows
        cuts = [order[at : at + size] for at in range(0, len(order), size)]
        return [
            fact_rows(self.backbone, *zip(*(pairs[i] for i in cut), strict=True)) for cut in cuts
        ]

    def logits(self, rows: FactRows) -> Tensor:
        """Logits [N, V] at the label positions of a whole pass."""
        output = self.model(**rows.encoded.inputs(), labels=rows.labels, use_cache=False)
        return output.logits[rows.labels != IGNORED]

    def loss(self, rows: FactRows) -> Tensor:
        """Mean cross-entropy over label positions."""
        return functional.cross_entropy(self.logits(rows), rows.labels[rows.labels != IGNORED])

    def cache(self, facts: Sequence[Edit], learn: bool) -> int:
        """Keys and output gradients of every mini-batch and layer into files; how many batches."""
        batches = self.batches(edit_pairs(facts))
        for number, rows in enumerate(batches):
            attended = rows.encoded.attention_mask.bool()
            mask = attended if self.sums else rows.labels != IGNORED
            seen: dict[str, list[Tensor]] = {path: [] for path in self.paths}
            handles = []
            for path, module in self.modules.items():
                handles.append(module.register_forward_hook(_saves_input(seen[path], mask)))
                handles.append(module.register_full_backward_hook(_saves_output(seen[path], mask)))
            self.loss(rows).backward()
            for handle in handles:
                handle.remove()
            for place, path in enumerate(self.paths):
                keys, gradients = seen[path]
                if learn:
                    net, _ = self.network.of(path)
                    net.standardiser.update(torch.cat([keys, gradients], dim=1))
                torch.save((keys, gradients), self.folder / f"{place}_{number}.pth")
        self.model.zero_grad(set_to_none=True)
        return len(batches)

    def rows(self, path: str, batches: int) -> list[tuple[Tensor, Tensor]]:
        """What `cache` wrote of one layer."""
        place = self.paths.index(path)
        return [torch.load(self.folder / f"{place}_{number}.pth") for number in range(batches)]

    @torch.no_grad()
    def predict(self, batches: int) -> dict[str, Tensor]:
        """The shift [d, d'] of every layer."""
        return {path: self.shift(path, self.rows(path, batches)) for path in self.paths}

    def shift(self, path: str, rows: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """One layer's: a sum of rank-one shifts, or the normal equations by LU."""
        if self.sums:
            return sum(self.summed(path, keys, gradients) for keys, gradients in rows)
        keys, gradients = (torch.cat(side) for side in zip(*rows, strict=True))
        wanted = torch.empty(0, gradients.shape[1])
        for part in zip(*(side.split(self.config.editor_rows) for side in (keys, gradients)),
                        strict=True):  # fmt: skip
            wanted = torch.cat([wanted, self.wanted(path, *part)])
        exact = keys.to(self.precision)
        right = exact.T @ wanted.to(self.precision)
        return torch.linalg.solve(self.gram(path, exact), right).float()

    def gram(self, path: str, keys: Tensor) -> Tensor:
        """K^T K + lambda I."""
        net, module = self.network.of(path)
        identity = torch.eye(keys.shape[1], dtype=keys.dtype)
        return keys.T @ keys + net.alpha[module].exp().detach() * identity

    def wanted(self, path: str, keys: Tensor, gradients: Tensor) -> Tensor:
        """D of some rows."""
        net, module = self.network.of(path)
        pseudo_keys, pseudo_gradients = net(keys, gradients, module)
        return -net.eta[module] * (keys * pseudo_keys).sum(-1, keepdim=True) * pseudo_gradients

    def summed(self, path: str, keys: Tensor, gradients: Tensor) -> Tensor:
        """MEND's shift of some rows."""
        net, module = self.network.of(path)
        pseudo_keys, pseudo_gradients = net(keys, gradients, module)
        return -net.eta[module] * pseudo_keys.T @ pseudo_gradients

    @torch.no_grad()
    def add(self, shifts: dict[str, Tensor], sign: float) -> None:
        """Add the shifts to the weights, or take them off."""
        for path, shift in shifts.items():
            self.modules[path].weight += sign * shift.T

    def step(self, facts: Sequence[Edit]) -> list[Tensor]:
        """One meta-step up to Adam's: the gradients of all parameters of the network."""
        count = self.cache(facts, learn=True)
        shifts = self.predict(count)
        for rows in self.batches(rephrase_pairs(facts)):
            self.add(shifts, 1)
            self.loss(rows).backward()
            self.add(shifts, -1)
        for rows in self.batches(unrelated_pairs(facts)):
            with torch.no_grad():
                before = functional.log_softmax(self.logits(rows), dim=-1)
            self.add(shifts, 1)
            after = functional.log_softmax(self.logits(rows), dim=-1)
            divergence = functional.kl_div(after, before, reduction="batchmean", log_target=True)
            (self.config.loc_coef * divergence).backward()
            self.add(shifts, -1)
        self.network.zero_grad(set_to_none=True)
        for path in self.paths:
            self.update(path, count, shifts[path])
        self.model.zero_grad(set_to_none=True)
        return [p.grad for p in self.network.parameters() if p.grad is not None]

    def update(self, path: str, count: int, shift: Tensor) -> None:
        """The gradient of the meta loss through one layer's shift."""
        rows, gamma = self.rows(path, count), self.modules[path].weight.grad.T
        if self.sums:
            for keys, gradients in rows:
                (gamma * self.summed(path, keys, gradients)).sum().backward()
            return
        keys, gradients = (torch.cat(side) for side in zip(*rows, strict=True))
        exact = keys.to(self.precision)
        identity = torch.eye(keys.shape[1], dtype=self.precision)
        inverse = torch.linalg.solve(self.gram(path, exact), identity)
        through = inverse @ gamma.to(self.precision)
        net, module = self.network.of(path)
        (-(through * shift).sum() * net.alpha[module].exp()).backward()
        size = self.config.editor_rows
        led = (exact @ through).float()
        parts = (side.split(size) for side in (keys, gradients, led))
        for k, g, constant in zip(*parts, strict=True):
            (constant * self.wanted(path, k, g)).sum().backward()

    def edit(self, facts: Sequence[Edit]) -> dict[str, Tensor]:
        """The shifts of a batch of edits, in force while they are read."""
        shifts = self.predict(self.cache(facts, learn=False))
        self.add(shifts, 1)
        self.add(shifts, -1)
        return shifts

    @torch.no_grad()
    def evaluate(self, facts: Sequence[Edit], shifts: dict[str, Tensor]) -> list[float]:
        """Right answer tokens of each row of the three lists, under the shifts."""
        self.add(shifts, 1)
        found = []
        for pairs in lists(facts):
            for rows in self.batches(pairs):
                at = rows.labels != IGNORED
                right = torch.zeros(at.shape)
                right[at] = (self.logits(rows).argmax(dim=-1) == rows.labels[at]).float()
                found += (right.sum(dim=1) / at.sum(dim=1)).tolist()
        self.add(shifts, -1)
        return found


def _saves_input(seen: list[Tensor], mask: Tensor) -> Callable[..., None]:
    return lambda _module, inputs, _output: seen.append(inputs[0][mask].detach())


def _saves_output(seen: list[Tensor], mask: Tensor) -> Callable[..., None]:
    return lambda _module, _inputs, outputs: seen.append(outputs[0][mask].detach())


def lists(facts: Sequence[Edit]) -> tuple[list[Pair], ...]:
    """Edited, rephrased and unrelated prompts with their answers."""
    return edit_pairs(facts), rephrase_pairs(facts), unrelated_pairs(facts)


class Project:
    """The same three steps by the project's own editor."""

    def __init__(self, editor: Malmen) -> None:
        self.editor = editor

    def fresh(self) -> "Project":
        """Nothing is kept of any fact."""
        editor = self.editor
        again = type(editor)(editor.backbone, editor.config, editor.training, kept=Kept())
        again.use_network(editor.network)
        return Project(again)

    def ready(self, facts: Sequence[Edit]) -> None:
        """What an epoch does before its first step."""
        self.editor.passes.fill([pair for pairs in lists(facts) for pair in pairs])
        self.editor.known.fill(edit_pairs(facts), unrelated_pairs(facts))

    def step(self, facts: Sequence[Edit]) -> list[Tensor]:
        """See `Official.step`."""
        self.editor.meta_gradients(facts)
        return [p.grad for p in self.editor.network.parameters() if p.grad is not None]

    def edit(self, facts: Sequence[Edit]) -> dict[str, Tensor]:
        """See `Official.edit`."""
        self.editor.edit(facts)
        shifts = dict(self.editor.tensors()["shifts"])
        self.editor.rollback()
        return shifts

    def evaluate(self, facts: Sequence[Edit], shifts: dict[str, Tensor]) -> list[float]:
        """See `Official.evaluate`."""
        self.editor.weights.write(shifts)
        with torch.no_grad():
            found = [hit for pairs in lists(facts) for hit in teacher_forced(self.editor, pairs)]
        self.editor.weights.restore()
        return found


# -- seconds -----------------------------------------------------------------------------------


def close(exact: Any, official: Any, project: Any) -> Agreement:
    """Tensors as one vector within TOLERANCE of the exact ones; hits as the official ones."""
    if isinstance(official, list) and not isinstance(official[0], Tensor):
        return Agreement(official == project, "every hit exactly")
    ours, theirs = (apart(*map(_tensors, (exact, side))) for side in (project, official))
    sense = f"within {TOLERANCE:.0e} (found {ours:.1e}; official in float32 {theirs:.1e})"
    return Agreement(ours <= TOLERANCE, sense)


def _tensors(found: Any) -> Any:
    return found.values() if isinstance(found, dict) else found


def lines_of(kind: str, backbone: Backbone, size: Size, folder: Path) -> Iterator[Line]:
    """The rows of the first table for one method."""
    editor, facts = editor_of(kind, backbone, size), facts_of(size)
    official, project = Official(editor, folder), Project(editor)
    weights(official, True)
    official.cache(facts, learn=True)  # statistics to start from, the same for both
    statistics = {k: v.clone() for k, v in official.network.state_dict().items()}

    def start(learn: bool) -> None:
        official.network.load_state_dict(statistics)
        editor.network.load_state_dict(statistics)
        weights(official, learn)

    def line(what: str, theirs: Callable, prepare: Callable[[], Any], ours: Callable) -> Line:
        slow = Side(lambda: start(True), lambda _: theirs())
        official.precision = torch.float64
        exact = slow.timed().found
        official.precision = torch.float32
        fast = Side(lambda: start(False) or prepare(), ours)
        agree = partial(close, exact)
        return compare(f"{kind}: {what}", slow, fast, agree, size.repeats)

    def once() -> Project:
        found = project.fresh()
        found.ready(facts)
        found.edit(facts)
        return found

    def first_step(subject: Project) -> list[Tensor]:
        subject.ready(facts)
        return subject.step(facts)

    kept, shifts = once(), project.edit(facts)
    yield line("train step, first time", lambda: official.step(facts), project.fresh, first_step)
    yield line("train step, facts met before", lambda: official.step(facts), lambda: kept,
               lambda subject: subject.step(facts))  # fmt: skip
    yield line("edit, first editor", lambda: official.edit(facts), project.fresh,
               lambda subject: subject.edit(facts))  # fmt: skip
    yield line("edit, a later editor", lambda: official.edit(facts), lambda: kept,
               lambda subject: subject.edit(facts))  # fmt: skip
    yield line("evaluation, first time", lambda: official.evaluate(facts, shifts), project.fresh,
               lambda subject: subject.evaluate(facts, shifts))  # fmt: skip
    yield line("evaluation, facts met before", lambda: official.evaluate(facts, shifts),
               lambda: kept, lambda subject: subject.evaluate(facts, shifts))  # fmt: skip
    weights(official, False)
    editor.close()


def weights(official: Official, learn: bool) -> None:
    """The official trainer wants gradients at the edited weights, and passes of no others."""
    for module in official.modules.values():
        module.weight.requires_grad_(learn)


def lines(size: Size) -> Iterator[Line]:
    """The rows of the first table."""
    backbone = loading.load(size.backbone, dtype=torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            yield from lines_of(kind, backbone, size, Path(folder))


def memory(size: Size) -> dict[str, Callable[[str], Callable[[], Any]]]:
    """The rows of the second table."""

    def loaded(kind: str, side: str) -> Callable[[], Any]:
        backbone = loading.load(size.backbone, dtype=torch.float32)
        editor, facts = editor_of(kind, backbone, size), facts_of(size)

        def theirs() -> None:
            with tempfile.TemporaryDirectory() as folder:
                official = Official(editor, Path(folder))
                weights(official, True)
                official.step(facts)
                official.edit(facts)

        def ours() -> None:
            project = Project(editor)
            project.ready(facts)
            project.step(facts)
            project.edit(facts)

        return theirs if side == "official" else ours

    return {f"{kind}: train step and edit": partial(loaded, kind) for kind in KINDS}


if __name__ == "__main__":
    beside.main(__doc__, FULL, TINY, lines, memory)
