"""COMEBA-HK, MEMIT and ROME beside a plain transcription of the official loops: time, memory,
results.

    python benchmarks/official/locate.py           # SmolLM2-135M, float32, about ten minutes
    python benchmarks/official/locate.py --tiny    # a random tiny model: for the equalities

The transcription is written from the study's notes on the official code (comeba_hk 2.3 to 2.9, 6,
8). Prints two tables; exit status 1 if any two results differ. benchmarks/README.md says more.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import beside
import torch
from beside import Agree, Agreement, Line, Side, compare, invented_stream
from torch import Tensor, nn
from torch.nn import functional

from lib.backbones.backbone import Backbone
from lib.backbones.encoding import answer_ids, pad, prompt_ids
from lib.backbones.sources import loading
from lib.backbones.text_states import add_documents, document_batches, key_width, symmetric
from lib.data import invented
from lib.data.records import Edit, Stream
from lib.editors import build
from lib.editors.locate.editor import LocateEditor
from lib.editors.locate.scope import TOLERANCE
from lib.editors.locate.solve import KeyMemory
from lib.evaluation.evaluator import Evaluator, Protocol

CONTEXTS = tuple(f"{word} old harbour lies behind the hill. " for word in
                 ("The", "Therefore", "Because", "I", "You"))  # fmt: skip
LR, DECAY, KL, STOP, CLAMP = 0.5, 0.5, 0.0625, 0.05, 0.75
MOMENT_WEIGHT, ALPHA, CHUNK, LENGTH = 1000.0, 2.2, 128, 128
SEARCHED = 1e-3
"""Relative, of searched values and weights: Adam amplifies the last digits of float32."""
COMPUTED = 1e-5
"""Relative, of keys, outputs and key statistics: float32 sums in another order."""
SOLVED = 1e-9
"""Relative, float64, condition number about 1e6."""


class Size(NamedTuple):
    """A backbone, the edited blocks, requests of a batch, steps of the value search, documents of
    the key statistics, (width, batch) of the solves, repeats, requests of the memory's batch."""

    backbone: str
    blocks: tuple[int, ...]
    requests: int
    steps: int
    documents: int
    solves: tuple[tuple[int, int], ...]
    repeats: int
    many: int


FULL = Size("smollm2-135m", (3, 4, 5, 6, 7, 8), 4, 6, 64, ((1536, 30), (6400, 30)), 1, 24)
TINY = Size("tiny-llama", (1, 2, 3), 2, 3, 8, ((96, 4),), 0, 6)


# -- the official side -----------------------------------------------------------------------------


class Row(NamedTuple):
    """Token ids of a string and the index of its subject's last token."""

    ids: list[int]
    look: int


class Official:
    """Hook weights and thresholds beside the model, one request at a time, whole passes."""

    def __init__(self, backbone: Backbone, size: Size, moments: dict[int, Tensor]) -> None:
        self.backbone, self.model, self.size, self.moments = backbone, backbone.model, size, moments
        self.model.requires_grad_(False)
        self.modules = {block: backbone.module("mlp_out", block) for block in size.blocks}
        self.originals = {block: module.weight.clone() for block, module in self.modules.items()}
        self.reset()

    def reset(self) -> "Official":
        """The model as it was loaded; hooks with its weights."""
        with torch.no_grad():
            for block, module in self.modules.items():
                module.weight.copy_(self.originals[block])
        # Parameters, as in the official code: searches compute gradients of them, unused.
        self.weights = {b: nn.Parameter(weight.clone()) for b, weight in self.originals.items()}
        self.alpha = dict.fromkeys(self.size.blocks, ALPHA)
        self.moment = {block: MOMENT_WEIGHT * self.moments[block] for block in self.size.blocks}
        return self

    def row(self, context: str, edit: Edit, tail: Sequence[int] = ()) -> Row:
        """The prompt behind a context, with ids appended."""
        before, after = edit.prompt.split(edit.subject)
        head = context + before + edit.subject
        ids = prompt_ids(self.backbone, head + after) + list(tail)
        return Row(ids, len(prompt_ids(self.backbone, head)) - 1)

    def run(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Logits [B, T, V] of right-padded rows."""
        mask = pad([[1] * len(row) for row in rows], 0)
        ids = pad(rows, self.backbone.pad_id)
        return self.model(input_ids=ids, attention_mask=mask).logits

    @contextlib.contextmanager
    def hooks(self, modes: dict[int, str]) -> Iterator[dict[int, Tensor]]:
        """The hook behaviours "temporary", "validated" and "recording"; gives the z scores."""
        seen: dict[int, Tensor] = {}

        def hook(block: int, mode: str) -> Callable[..., Tensor]:
            def act(module: nn.Linear, inputs: tuple, base: Tensor) -> Tensor:
                own = functional.linear(inputs[0], self.weights[block], module.bias)
                if mode == "temporary":
                    return own
                distance = (own - base).norm(dim=-1)
                z = (distance - distance.mean(dim=1, keepdim=True)) / distance.std(
                    dim=1, keepdim=True
                )
                seen[block] = z.detach()
                inside = (z >= self.alpha[block] - TOLERANCE)[..., None]
                return base if mode == "recording" else torch.where(inside, own, base)

            return act

        handles = [self.modules[b].register_forward_hook(hook(b, m)) for b, m in modes.items()]
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()

    def all(self, mode: str) -> contextlib.AbstractContextManager[dict[int, Tensor]]:
        """All hooks in one mode."""
        return self.hooks(dict.fromkeys(self.size.blocks, mode))

    def search(self, edit: Edit, block: int, part: str = "block", clamp: float = CLAMP) -> Tensor:
        """The value [d] of one request at the output of a part of `block`."""
        target = answer_ids(self.backbone, edit.target)
        rows = [self.row(context, edit, target[:-1]) for context in ("", *CONTEXTS)]
        look = len(prompt_ids(self.backbone, edit.subject)) - 1
        rows.append(Row(prompt_ids(self.backbone, f"{edit.subject} is a"), look))
        delta = torch.zeros(self.model.config.hidden_size, requires_grad=True)
        adam, initial, start = torch.optim.Adam([delta], lr=LR), None, None

        def add(_module: nn.Module, _inputs: tuple, output: Any) -> Any:
            nonlocal initial
            hidden = (output[0] if isinstance(output, tuple) else output).clone()
            if initial is None:
                initial = hidden[0, rows[0].look].detach().clone()
            for number, row in enumerate(rows):
                hidden[number, row.look] += delta
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        for step in range(self.size.steps):
            handle = self.backbone.module(part, block).register_forward_hook(add)
            log_p = self.run([row.ids for row in rows]).log_softmax(dim=-1)
            handle.remove()
            each = [
                -log_p[number, len(row.ids) - len(target) : len(row.ids)]
                .gather(1, torch.tensor(target)[:, None])
                .mean()
                for number, row in enumerate(rows[:-1])
            ]
            here = log_p[-1, rows[-1].look]
            start = here.detach().clone() if start is None else start
            kl = (here.exp() * (here - start)).sum()
            loss = torch.stack(each).mean() + KL * kl + DECAY * delta.norm() / initial.norm() ** 2
            if loss.item() < STOP or step == self.size.steps - 1:
                break
            adam.zero_grad()
            loss.backward()
            adam.step()
            bound = clamp * initial.norm()
            if delta.norm() > bound:
                with torch.no_grad():
                    delta.mul_(bound / delta.norm())
        return (initial + delta).detach()

    @torch.no_grad()
    def read(self, rows: Sequence[Row], part: str, block: int, what: str) -> Tensor:
        """Input or output of a part at the subjects [B, w], by whole passes of 128 rows."""
        found, seen = [], {}

        def note(_module: nn.Module, inputs: tuple, output: Any) -> None:
            seen["input"] = inputs[0]
            seen["output"] = output[0] if isinstance(output, tuple) else output

        handle = self.backbone.module(part, block).register_forward_hook(note)
        for at in range(0, len(rows), CHUNK):
            self.run([row.ids for row in rows[at : at + CHUNK]])
            places = enumerate(row.look for row in rows[at : at + CHUNK])
            found += [seen[what][number, look] for number, look in places]
        handle.remove()
        return torch.stack(found)

    def keys_and_outputs(self, edits: Sequence[Edit], block: int) -> tuple[Tensor, Tensor]:
        """K [f, B] of a block and the last block's outputs [d, B]."""
        rows = [self.row(context, edit) for edit in edits for context in ("", *CONTEXTS)]
        keys = self.read(rows, "mlp_out", block, "input").unflatten(0, (len(edits), -1))
        keys = (keys[:, 0] + keys[:, 1:].mean(dim=1)) / 2
        bare = [self.row("", edit) for edit in edits]
        return keys.T, self.read(bare, "block", self.size.blocks[-1], "output").T

    def coach(self, edits: Sequence[Edit]) -> None:
        """One batch of COMEBA-HK."""
        blocks = self.size.blocks
        with self.all("validated"):
            values = torch.stack([self.search(edit, blocks[-1]) for edit in edits], dim=1)
        modes = dict.fromkeys(blocks, "temporary")
        for number, block in enumerate(blocks):
            with self.hooks(modes):
                keys, outputs = self.keys_and_outputs(edits, block)
            update, total = self.update(block, keys, (values - outputs) / (len(blocks) - number))
            self.moment[block] = total.float()
            weight = (self.weights[block].double() + update).float()
            self.weights[block] = nn.Parameter(weight.detach())
            modes[block] = "validated"
        with self.all("recording") as z, torch.no_grad():
            self.run([prompt_ids(self.backbone, edit.prompt) for edit in edits])
        for block in blocks:
            self.alpha[block] = min(float(z[block].amax(dim=1).min()), self.alpha[block])

    def update(self, block: int, keys: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """The update [d, f] in float64, by LU, and the sum that was solved with."""
        keys = keys.double()
        total = self.moment[block].double() + keys @ keys.T
        return residual.double() @ torch.linalg.solve(total, keys).T, total

    @torch.no_grad()
    def write(self, block: int, update: Tensor) -> None:
        """An update goes into the model's own weight."""
        module = self.modules[block]
        module.weight.copy_((module.weight.double() + update).float())

    def memit(self, edits: Sequence[Edit]) -> None:
        """One batch of MEMIT."""
        blocks = self.size.blocks
        values = torch.stack([self.search(edit, blocks[-1]) for edit in edits], dim=1)
        for number, block in enumerate(blocks):
            keys, outputs = self.keys_and_outputs(edits, block)
            residual = (values - outputs) / (len(blocks) - number)
            self.write(block, self.update(block, keys, residual)[0])

    def rome(self, edits: Sequence[Edit]) -> None:
        """One edit after the other, without key statistics, at the first block."""
        block = self.size.blocks[0]
        for edit in edits:
            rows = [self.row(context, edit) for context in ("", *CONTEXTS)]
            left = self.read(rows, "mlp_out", block, "input").mean(dim=0)
            left = left / left.norm()
            value = self.search(edit, block, "mlp_out", clamp=4.0)
            (key,) = self.read(rows[:1], "mlp_out", block, "input")
            (output,) = self.read(rows[:1], "mlp_out", block, "output")
            self.write(block, torch.outer((value - output) / (left @ key), left).double())

    @torch.no_grad()
    def statistics(self, texts: Sequence[str]) -> Tensor:
        """E[k k^T] [L, f, f], by a pass over the text for each block, stopped behind its keys."""
        found = []
        for module in self.modules.values():
            total, count, keep = torch.zeros(module.in_features, module.in_features), 0, {}

            def stop(_module: nn.Module, inputs: tuple, keep: dict = keep) -> None:
                keep["keys"] = inputs[0]
                raise StopIteration

            handle = module.register_forward_pre_hook(stop)
            for batch, real in document_batches(self.backbone, texts, LENGTH):
                with contextlib.suppress(StopIteration):
                    self.model(**batch.inputs())
                keys = keep["keys"][real]
                total, count = total + keys.T @ keys, count + len(keys)
            handle.remove()
            found.append(total / count)
        return torch.stack(found)

    @torch.no_grad()
    def evaluate(self, rows: Sequence[Edit]) -> list[tuple[float, float]]:
        """Accuracy and mean NLL of each answer, row by row, after a pass of the base model."""
        found = []
        for row in rows:
            head = prompt_ids(self.backbone, row.prompt)
            tail = answer_ids(self.backbone, row.target)
            for context in (contextlib.nullcontext(), self.all("validated")):
                with context:
                    log_p = self.run([head + tail])[0, len(head) - 1 : -1].log_softmax(dim=-1)
            right = (log_p.argmax(dim=-1) == torch.tensor(tail)).float().mean()
            nll = -log_p.gather(1, torch.tensor(tail)[:, None]).mean()
            found.append((float(right), float(nll)))
        return found


# -- the project's side ----------------------------------------------------------------------------


class Project:
    """An editor with the contexts and key statistics of the official side."""

    def __init__(
        self, kind: str, backbone: Backbone, size: Size, moments: dict[int, Tensor]
    ) -> None:
        self.size, self.moments = size, moments
        values = {"blocks": size.blocks, "value_steps": size.steps}
        if kind == "rome":
            values["blocks"] = size.blocks[:1]
        else:
            values["moment_weight"] = MOMENT_WEIGHT
        self.editor: LocateEditor = build(kind, backbone, values)
        self.editor.contexts = CONTEXTS

    def reset(self) -> "Project":
        """As built; nothing is kept of the solves before."""
        self.editor.rollback()
        if self.editor.name != "ROME":
            self.editor.memory = {
                block: KeyMemory(self.moments[block], MOMENT_WEIGHT) for block in self.size.blocks
            }
        return self

    def search(self, edits: Sequence[Edit]) -> Tensor:
        """Values [B, d]."""
        return self.editor.find_values(self.editor.requests(edits)).values

    def keys_and_outputs(self, edits: Sequence[Edit]) -> list[Tensor]:
        """Of every block, as `LocateEditor.spread` reads them."""
        editor, requests = self.editor, self.editor.requests(edits)
        written, bare = (editor.passes(requests, some) for some in (("", *CONTEXTS), ("",)))
        found = []
        for block in editor.blocks:
            for passes in (written, bare):
                passes.settle(block)
            found.append(editor.mean_keys(written, block, len(requests)))
            found.append(bare.read("block", editor.blocks[-1]).T)
        return found

    def statistics(self, texts: Sequence[str]) -> Tensor:
        """E[k k^T] [L, f, f]."""
        backbone = self.editor.backbone
        widths = {block: key_width(backbone, block) for block in self.size.blocks}
        sums = {block: torch.zeros(width, width) for block, width in widths.items()}
        with torch.no_grad():
            count = add_documents(backbone, texts, LENGTH, sums)
        return torch.stack([symmetric(total) / count for total in sums.values()])

    def evaluate(self, stream: Stream) -> list[tuple[float, float]]:
        """See `Official.evaluate`."""
        protocol = Protocol(decode=False, rivals=False, evaluation_batch=32)
        evaluator = Evaluator(self.editor, stream, protocol)
        return [
            (row["answer_accuracy"], row["answer_nll"])
            for subset in ("edits", "holdout")
            for row in evaluator.records(subset, "end", len(stream.edits))
        ]


# -- seconds and memory ----------------------------------------------------------------------------


def loaded(size: Size) -> Backbone:
    """A backbone of its own, fed without a document prefix, as the official models are."""
    return replace(loading.load(size.backbone, dtype=torch.float32), prefix="")


def moments_of(backbone: Backbone, size: Size) -> dict[int, Tensor]:
    """Definite key statistics for both sides."""
    project = Project("comeba_hk", backbone, size, {})
    found = project.statistics(invented.sentences()[: size.documents])
    project.editor.close()
    ridge = 1e-2 * found.diagonal(dim1=1, dim2=2).mean(dim=1)
    units = torch.eye(found.shape[1]) * ridge[:, None, None]
    return dict(zip(size.blocks, found + units, strict=True))


def close(tolerance: float, what: str) -> Agree:
    """Agreement of lists of tensors as vectors; the worst counts."""

    def agree(one: Sequence[Tensor], other: Sequence[Tensor]) -> Agreement:
        error = max(beside.apart([a], [b]) for a, b in zip(one, other, strict=True))
        return Agreement(error <= tolerance, f"{what} within {tolerance:.0e} ({error:.1e})")

    return agree


def lines(size: Size) -> Iterator[Line]:
    """All rows of the first table."""
    stream, backbone = invented_stream(), loaded(size)
    moments = moments_of(backbone, size)
    official = Official(loaded(size), size, moments)
    project = Project("comeba_hk", backbone, size, moments)
    count, texts = size.requests, invented.sentences()[: size.documents]
    batches = stream.edits[:count], stream.edits[count : 2 * count]

    def searched(side: Official) -> Tensor:
        with side.all("validated"):
            return torch.stack([side.search(edit, size.blocks[-1]) for edit in batches[0]])

    def read(side: Official) -> list[Tensor]:
        with side.all("temporary"):
            found = (side.keys_and_outputs(batches[0], block) for block in size.blocks)
            return [tensor for pair in found for tensor in pair]

    what = f"{count} requests"
    yield compare(
        f"value search: {what}, {size.steps} steps",
        Side(official.reset, searched),
        Side(project.reset, lambda side: side.search(batches[0])),
        close(SEARCHED, "values"),
        size.repeats,
    )
    yield compare(
        f"keys and outputs: {what}, {len(size.blocks)} blocks",
        Side(official.reset, read),
        Side(project.reset, lambda side: side.keys_and_outputs(batches[0])),
        close(COMPUTED, "both"),
        size.repeats,
    )
    yield compare(
        f"covariance: {len(texts)} documents, {len(size.blocks)} blocks",
        Side(official.reset, lambda side: side.statistics(texts)),
        Side(project.reset, lambda side: side.statistics(texts)),
        close(COMPUTED, "statistics"),
        size.repeats,
    )
    for width, batch in size.solves:
        yield solves(width, batch, size.repeats)
    yield from edits(size, official, batches)
    yield compare(
        f"COMEBA-HK: 2 batches of {what}",
        Side(official.reset, lambda side: hooked(side, batches)),
        Side(project.reset, lambda side: edited(side, batches)),
        close(SEARCHED, "updates and thresholds"),
        size.repeats,
    )
    rows = replace(stream, edits=stream.edits[: 2 * count], holdout=stream.holdout[: 2 * count])
    yield compare(
        f"evaluation with hooks: {4 * count} rows",
        Side(lambda: official, lambda side: side.evaluate([*rows.edits, *rows.holdout])),
        Side(lambda: project, lambda side: side.evaluate(rows)),
        beside.scored(SEARCHED),
        size.repeats,
    )


def hooked(side: Official, batches: Sequence[Sequence[Edit]]) -> list[Tensor]:
    """Updates and thresholds after some batches of the official COMEBA-HK."""
    for batch in batches:
        side.coach(batch)
    changed = [side.weights[block].detach() - side.originals[block] for block in side.size.blocks]
    return [*changed, torch.tensor(list(side.alpha.values()))]


def edited(side: Project, batches: Sequence[Sequence[Edit]]) -> list[Tensor]:
    """As `hooked`, of the project's."""
    for batch in batches:
        side.editor.edit(batch)
    hooks = side.editor.hooks.values()
    changed = [hook.weight - hook.original for hook in hooks]
    return [*changed, torch.tensor([hook.alpha for hook in hooks])]


def edits(size: Size, official: Official, batches: Sequence[Sequence[Edit]]) -> Iterator[Line]:
    """The rows of the editors that write into the model's weights."""
    for kind, work, written in (
        ("memit", Official.memit, size.blocks),
        ("rome", Official.rome, size.blocks[:1]),
    ):
        project = Project(kind, loaded(size), size, official.moments)
        start = {block: official.originals[block] for block in written}

        def theirs(side: Official, work: Any = work, start: Any = start) -> list[Tensor]:
            work(side, batches[0])
            return [side.modules[block].weight - weight for block, weight in start.items()]

        def ours(side: Project, start: Any = start) -> list[Tensor]:
            side.editor.edit(batches[0])
            modules = side.editor.modules
            return [modules[block].weight - weight for block, weight in start.items()]

        yield compare(
            f"{project.editor.name}: {size.requests} requests",
            Side(official.reset, theirs),
            Side(project.reset, ours),
            close(SEARCHED, "updates"),
            size.repeats,
        )
        project.editor.close()


def solves(width: int, batch: int, repeats: int) -> Line:
    """X = (C + K K^T)^-1 K of three consecutive batches, the first inverse included."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.logspace(0, -3, width)
    text = torch.randn(width, 2 * width, generator=generator) * spread[:, None]
    moment = text @ text.T + 1e-6 * torch.eye(width)
    batches = torch.randn(3, width, batch, generator=generator, dtype=torch.float64)

    def theirs(_: None) -> list[Tensor]:
        total, found = moment.double(), []
        for keys in batches:
            total = total + keys @ keys.T
            found.append(torch.linalg.solve(total, keys))
        return found

    def ours(_: None) -> list[Tensor]:
        memory, found = KeyMemory(moment, 1.0), []
        for keys in batches:
            found.append(memory.solve(keys))
            memory.absorb(keys)
        return found

    what = f"solve: width {width:,}, {len(batches)} batches of {batch}"
    nothing = lambda: None  # noqa: E731
    return compare(
        what, Side(nothing, theirs), Side(nothing, ours), close(SOLVED, "solutions"), repeats
    )


def memory(size: Size) -> dict[str, Callable[[str], Callable[[], Any]]]:
    """The row of the second table."""
    few, batch = size._replace(steps=3), invented_stream().edits[: size.many]

    def loaded_side(side: str) -> Callable[[], Any]:
        backbone = loaded(few)
        moments = moments_of(backbone, few)
        if side == "official":
            official = Official(backbone, few, moments)
            return lambda: official.coach(batch)
        project = Project("comeba_hk", backbone, few, moments).reset()
        return lambda: project.editor.edit(batch)

    return {f"COMEBA-HK: a batch of {size.many}": loaded_side}


if __name__ == "__main__":
    beside.main(__doc__, FULL, TINY, lines, memory)
