"""MELO and GRACE beside plain transcriptions of the official loops: time, memory, results.

    python benchmarks/official/melo.py           # three small models, float32, several minutes
    python benchmarks/official/melo.py --tiny    # random tiny models: for the equalities

The transcriptions are written from the study's notes on the official codes (melo 2.2 to 2.7, 5, 7,
10). Prints two tables; exit status 1 if any two results differ. benchmarks/README.md says more.
"""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import beside
import torch
from beside import Agreement, Line, Spent, invented_stream
from torch import Tensor, nn
from torch.nn import functional

from lib.backbones.backbone import Backbone
from lib.backbones.encoding import IGNORED, Encoded, encode
from lib.backbones.sources import loading
from lib.data.records import Edit, Probe, Stream
from lib.editors import build, settings_of
from lib.editors.adapters.melo import Melo
from lib.editors.base import Editor
from lib.editors.memory.grace import Grace
from lib.evaluation.evaluator import Evaluator, Protocol

TOLERANCE = 1e-3
"""Relative above 1, of losses: Adam amplifies the last digits of float32. Texts and classes have no
tolerance."""
NEW_TOKENS = 19
PHASES = ("edit", "evaluation, first time", "evaluation, later")
POOLS = ("holdout", "upstream", "near")
NONE = -1
Rows = Sequence[Edit | Probe]


class Case(NamedTuple):
    """An editor on a backbone: how many batches of four edits, and what the settings change."""

    kind: str
    backbone: str
    batches: int
    changes: dict[str, Any]


class Size(NamedTuple):
    """Cases and repeats."""

    cases: tuple[Case, ...]
    repeats: int


# A causal row's key is read at its last prompt token: the released one sees the target, and no
# generation meets it again. T5's questions are not cut, or some of them would be one question.
RELEASED = {"conflict_policy": "as_released", "key_position": "last_column"}
AT_PROMPT = RELEASED | {"key_position": "last_prompt_token"}
WHOLE = {"max_length": None}
FULL = Size(
    (
        Case("melo", "flan-t5-small", 3, {"steps": 20} | RELEASED | WHOLE),
        Case("melo", "smollm2-135m", 3, {"steps": 20} | AT_PROMPT),
        Case("melo", "minilm-l6", 3, {"steps": 20} | RELEASED),
        Case("grace", "flan-t5-small", 3, {"steps": 20} | WHOLE),
    ),
    repeats=3,
)
TINY = Size(
    (
        Case("melo", "tiny-t5", 2, {"steps": 3} | RELEASED | WHOLE),
        Case("melo", "tiny-llama", 2, {"steps": 3} | AT_PROMPT),
        Case("melo", "tiny-bert", 2, {"steps": 3} | RELEASED),
        Case("grace", "tiny-t5", 1, {"steps": 3} | WHOLE),
    ),
    repeats=0,
)


def stream_of(case: Case, backbone: Backbone) -> Stream:
    """The first batches of the invented stream and as many rows of each pool."""
    stream = invented_stream()
    count = case.batches * stream.batch_size
    parts = {name: getattr(stream, name)[:count] for name in ("edits", *POOLS)}
    if backbone.family.kind == "classifier":
        parts = {
            name: tuple(replace(row, target=str(len(row.prompt) % 2)) for row in rows)
            for name, rows in parts.items()
        }
    return replace(stream, **parts)


# -- the official side -----------------------------------------------------------------------------


class Official:
    """What both loops share: rows tokenised anew, whole passes, every row at every checkpoint."""

    size: int  # rows at once in evaluation

    def __init__(self, editor: Editor, backbone: Backbone) -> None:
        self.backbone, self.model, self.config = backbone, backbone.model, editor.config
        self.columns = torch.empty(0)

    def rows(self, rows: Rows) -> Encoded:
        """Prompts with targets as labels; remembers where their keys are read."""
        prompts, targets = [row.prompt for row in rows], [row.target for row in rows]
        length, full = self.config.max_length, self.config.full_width
        batch = encode(self.backbone, prompts, targets, max_length=length, full_width=full)
        causal = self.backbone.family.kind == "causal"
        self.columns = batch.last_prompt if causal else torch.full((len(batch),), -1)
        return batch

    @torch.no_grad()
    def evaluate(self, groups: Sequence[Rows]) -> list[Any]:
        """Text or class of each row, of a causal model the likelihood of its target."""
        found: list[Any] = []
        for group in groups:
            for start in range(0, len(group), self.size):
                found += self._scored(self.rows(group[start : start + self.size]))
        return found

    def _scored(self, batch: Encoded) -> list[Any]:
        kind, tokenizer = self.backbone.family.kind, self.backbone.tokenizer
        if kind == "seq2seq":
            ids = self.model.generate(
                **batch.inputs(), max_new_tokens=NEW_TOKENS, do_sample=False, num_beams=1
            )
            return [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
        logits = self.model(**batch.inputs(), labels=batch.labels).logits
        if kind == "classifier":
            return [str(number) for number in logits.argmax(dim=-1).tolist()]
        losses = functional.cross_entropy(
            logits[:, :-1].transpose(1, 2), batch.labels[:, 1:], reduction="none"
        )
        return (losses.sum(dim=1) / (batch.labels[:, 1:] != IGNORED).sum(dim=1)).tolist()

    def keys(self, hidden: Tensor) -> Tensor:
        """Hidden states at the remembered columns."""
        return hidden[torch.arange(len(hidden)), self.columns].detach()

    def minimise(self, batch: Encoded, halve: int) -> list[float]:
        """First and last loss of `steps` steps of a new Adam on whole passes."""
        losses: list[float] = []
        for step in range(self.config.steps):
            self.step = step
            loss = self.model(**batch.inputs(), labels=batch.labels).loss
            if step == 0:  # what is trained is there now
                optimiser = torch.optim.Adam(self.parameters(), lr=self.config.lr)
                schedule = torch.optim.lr_scheduler.StepLR(optimiser, halve, gamma=0.5)
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            schedule.step()
            losses.append(loss.item())
        return [losses[0], losses[-1]]


@dataclass
class Cluster:
    """Centre, radius, label code, and points with the block that each names."""

    centre: Tensor
    radius: float
    label: int
    points: list[tuple[Tensor, int]]


class OfficialMelo(Official):
    """All slices are parameters, the database is searched in every pass (melo 2.2 to 2.7)."""

    size = 4

    def __init__(self, editor: Melo, backbone: Backbone) -> None:
        super().__init__(editor, backbone)
        blocks = editor.lora.read(slice(0, editor.capacity))
        paths = list(editor.lora.layers)
        self.start = [(blocks[f"{path}.A"].T, blocks[f"{path}.B"].T) for path in paths]
        self.rank, self.scale = self.config.rank_per_block, editor.capacity**0.5
        for place, path in enumerate(paths):
            hook = lambda _m, inputs, out, at=place: out + self._delta(at, inputs[0])  # noqa: E731
            self.model.get_submodule(path).register_forward_hook(hook)
        self.model.get_submodule(editor.router_path).register_forward_hook(self._route)
        self.reset()

    def reset(self) -> None:
        """Before the first edit again."""
        self.slices = [tuple(nn.Parameter(part.clone()) for part in pair) for pair in self.start]
        self.clusters: list[Cluster] = []
        self.filed = 0
        self.labels: list[int] | None = None  # of the batch that is being edited

    def _delta(self, place: int, x: Tensor) -> Tensor:
        down, up = self.slices[place]
        gathered = []
        for block in self.ids:
            at = slice(max(block, 0) * self.rank, (max(block, 0) + 1) * self.rank)
            pair = down[:, at], up[at]
            gathered.append(map(torch.zeros_like, pair) if block == NONE else pair)
        downs, ups = map(torch.stack, zip(*gathered, strict=True))
        return x @ (self.scale * downs) @ (self.scale * ups)

    def _route(self, _module: nn.Module, _inputs: tuple, output: Tensor) -> None:
        keys = self.keys(output)
        if self.labels is None:
            self.ids = self.search(keys)
            return
        if self.step == 0:
            self.insert(keys)
        else:
            self.search(keys)  # and thrown away
        self.ids = [self.filed] * len(keys)

    def _nearest(self, keys: Tensor) -> tuple[list[float], list[int]]:
        every = [(keys - cluster.centre).norm(dim=1) for cluster in self.clusters]
        distance, place = torch.stack(every, dim=1).min(dim=1)
        return distance.tolist(), place.tolist()

    def search(self, keys: Tensor) -> list[int]:
        """The block of each key."""
        if not self.clusters:
            return [NONE] * len(keys)
        found = []
        for key, distance, place in zip(keys, *self._nearest(keys), strict=True):
            cluster = self.clusters[place]
            points = torch.stack([point for point, _ in cluster.points])
            nearest = int((points - key).norm(dim=1).argmin())
            found.append(NONE if distance > cluster.radius else cluster.points[nearest][1])
        return found

    def insert(self, keys: Tensor) -> None:
        """File the keys of a batch under its block (melo 2.5)."""
        radius, block = self.config.radius, self.filed
        rows = list(zip(keys, self.labels, strict=True))
        if not self.clusters:
            self.clusters = [Cluster(key, radius, code, [(key, block)]) for key, code in rows]
            return
        nearest = self._nearest(keys)
        for (key, code), distance, place in zip(rows, *nearest, strict=True):
            cluster = self.clusters[place]
            if distance <= cluster.radius + radius and code == cluster.label:
                cluster.points.append((key, block))
                points = torch.stack([point for point, _ in cluster.points])
                cluster.centre = points.mean(dim=0)
                reach = (points - cluster.centre).norm(dim=1).max().item()
                cluster.radius = max(reach, radius)
                continue
            made = Cluster(key, radius, code, [(key, block)])
            if distance <= cluster.radius + radius:
                cluster.radius, made.radius = distance / 2 - 1e-5, distance / 2 + 1e-5
                inside = [
                    point
                    for point in cluster.points
                    if (point[0] - cluster.centre).norm().item() <= cluster.radius
                ]
                cluster.points = inside or [(cluster.centre, NONE)]
            self.clusters.append(made)

    def parameters(self) -> list[Tensor]:
        """Every slice of every block."""
        return [part for pair in self.slices for part in pair]

    def edit(self, edits: Sequence[Edit]) -> list[float]:
        """One batch into its block (melo 2.6)."""
        batch = self.rows(edits)
        codes = batch.labels.masked_fill(batch.labels == IGNORED, 0)
        self.labels = (codes if codes.ndim == 1 else codes.sum(dim=1)).tolist()
        losses = self.minimise(batch, self.config.halve_every)
        self.labels = None
        self.filed += 1
        return losses


class OfficialGrace(Official):
    """One edit and one row at a time (melo 7)."""

    size = 1

    def __init__(self, editor: Grace, backbone: Backbone) -> None:
        super().__init__(editor, backbone)
        layer = self.model.get_submodule(editor.path)
        layer.register_forward_hook(self._replace)
        self.width = layer.out_features
        self.reset()

    def reset(self) -> None:
        """Before the first edit again."""
        self.keys_of: list[Tensor] = []
        self.values: list[nn.Parameter] = []
        self.radii: list[float] = []
        self.labels: list[float] = []
        self.label: float | None = None  # of the edit that is being made

    def _replace(self, _module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        key = self.keys(inputs[0])[0]
        if self.label is not None and self.step == 0:
            self._file(key)
        if not self.keys_of:
            return output
        distance, entry = torch.stack([(key - known).norm() for known in self.keys_of]).min(dim=0)
        before = torch.arange(output.shape[1]) < self.columns % output.shape[1]
        at = before & (distance <= self.radii[int(entry)])
        return torch.where(at[None, :, None], self.values[int(entry)], output)

    def _file(self, key: Tensor) -> None:
        radius = self.config.radius
        if self.keys_of:
            distance, entry = torch.stack([(key - known).norm() for known in self.keys_of]).min(0)
            apart, place = distance.item(), int(entry)
            if apart <= self.radii[place] + radius:
                if self.labels[place] == self.label:
                    self.radii[place] = max(self.radii[place], apart)
                    return
                self.radii[place], radius = apart / 2 - 1e-5, apart / 2
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + len(self.values))
        drawn = torch.rand(1, self.width, generator=generator)
        self.keys_of.append(key)
        self.values.append(nn.Parameter(drawn[0]))
        self.radii.append(radius)
        self.labels.append(self.label)

    def parameters(self) -> list[Tensor]:
        """Every value."""
        return self.values

    def edit(self, edits: Sequence[Edit]) -> list[float]:
        """The edits of a batch, one after the other: mean first and last loss."""
        losses = []
        for edit in edits:
            batch = self.rows([edit])
            self.label = batch.labels[batch.labels != IGNORED].double().mean().item()
            losses.append(self.minimise(batch, self.config.steps + 1))
            self.label = None
        return [statistics.fmean(column) for column in zip(*losses, strict=True)]


# -- this study's side -----------------------------------------------------------------------------


class Project:
    """The editor and the evaluator of a run."""

    def __init__(self, editor: Editor, stream: Stream) -> None:
        self.editor, self.stream = editor, stream
        kind = editor.backbone.family.kind
        self.value = "nll" if kind == "causal" else "prediction"
        self.protocol = Protocol(
            max_new_tokens=NEW_TOKENS,
            evaluation_batch=stream.batch_size,
            decode=kind != "causal",
            rivals=False,
        )
        self.reset()

    def reset(self) -> None:
        """Before the first edit again; nothing is known of any row."""
        self.editor.rollback()
        self.evaluator = Evaluator(self.editor, self.stream, self.protocol)

    def edit(self, edits: Sequence[Edit]) -> list[float]:
        """See `Official.edit`."""
        report = self.editor.edit(edits)
        return [report.loss_first, report.loss_last]

    def evaluate(self, groups: Sequence[Rows]) -> list[Any]:
        """See `Official.evaluate`; the rows are the evaluator's own, as many of each pool."""
        found = []
        for subset, rows in zip(("edits", *POOLS), groups, strict=True):
            scored = self.evaluator.records(subset, "checkpoint", 0, applied=len(rows))
            found += [row[self.value] for row in scored]
        return found


# -- seconds and memory ----------------------------------------------------------------------------


def sides(case: Case) -> tuple[Stream, Official, Project]:
    """Both sides of a case, on two backbones of the same weights."""
    loaded = [
        loading.load(case.backbone, dtype=torch.float32, num_labels=_labels(case)) for _ in "12"
    ]
    if loaded[0].content != loaded[1].content:
        raise RuntimeError(f"two loads of {case.backbone} should hold the same weights")
    editor = build(case.kind, loaded[0], settings_of(case.kind, case.backbone) | case.changes)
    stream = stream_of(case, loaded[0])
    made = OfficialMelo if isinstance(editor, Melo) else OfficialGrace
    return stream, made(editor, loaded[1]), Project(editor, stream)


def _labels(case: Case) -> int | None:
    return None if loading.has_head(case.backbone) else 2


def timeline(side: Official | Project, stream: Stream) -> dict[str, Spent]:
    """The stream's batches, everything scored before the first and after each."""
    side.reset()
    spent = {name: Spent(0.0, 0.0, []) for name in PHASES}

    def phase(name: str, work: Any, *arguments: Any) -> None:
        before, more = spent[name], beside.timed(work, *arguments)
        spent[name] = Spent(*(a + b for a, b in zip(before, more, strict=True)))

    pools, edited = [getattr(stream, pool) for pool in POOLS], 0
    phase(PHASES[1], side.evaluate, [stream.edits, *pools])
    for batch in stream.batches():
        phase(PHASES[0], side.edit, batch)
        edited += len(batch)
        phase(PHASES[2], side.evaluate, [stream.edits[:edited], *pools])
    return spent


def agreement(official: list[Any], project: list[Any]) -> Agreement:
    """Texts and classes exactly, numbers within the tolerance."""
    if isinstance(official[0], str):
        same = sum(a == b for a, b in zip(official, project, strict=True))
        return Agreement(same == len(official), f"{same} of {len(official)} answers")
    away = beside.off(official, project)
    sense = f"{len(official)} numbers within {TOLERANCE:.0e} ({away:.1e})"
    return Agreement(away <= TOLERANCE, sense)


def lines(size: Size) -> Iterator[Line]:
    """The rows of the first table: of each case its phases, a timeline being a round."""
    for case in size.cases:
        stream, *both = sides(case)
        timelines = (partial(timeline, side, stream) for side in both)
        rounds = beside.in_turns(*timelines, size.repeats)
        for name in PHASES:
            theirs, ours = ([spent[name] for spent in side] for side in rounds)
            yield beside.line(f"{named(case)}: {name}", theirs, ours, agreement)


def named(case: Case) -> str:
    """The case in a table."""
    return f"{case.kind.upper()} on {case.backbone}"


def memory(size: Size) -> dict[str, Callable[[str], Callable[[], Any]]]:
    """The rows of the second table: a timeline of each case."""

    def loaded(case: Case, side: str) -> Callable[[], Any]:
        stream, official, project = sides(case)
        return partial(timeline, official if side == "official" else project, stream)

    return {named(case): partial(loaded, case) for case in size.cases}


if __name__ == "__main__":
    beside.main(__doc__, FULL, TINY, lines, memory)
