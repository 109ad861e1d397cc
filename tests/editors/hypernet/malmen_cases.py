"""What the tests of MALMEN, MEND and RLEdit share: facts, edited layers, networks, the oracle."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lib.backbones.backbone import Backbone
from lib.backbones.passes.kept import Kept
from lib.data.records import Edit, Probe
from lib.data.training import TrainingFacts
from lib.editors.hypernet.capture import RowStore
from lib.editors.hypernet.malmen import Malmen, MalmenConfig, Mend, MendConfig
from lib.editors.hypernet.ridge import whole
from lib.editors.hypernet.rledit import RlEdit, RlEditConfig
from lib.editors.hypernet.study import training_rows
from lib.editors.parts.sites import Site
from lib.storage.cache import Cache
from tests.conftest import stream
from tests.editors.hypernet.reference_hypernetwork import Block, Network, Standardiser
from tests.editors.hypernet.reference_malmen import Reference, Settings

FAMILIES = ("tiny-gpt2", "tiny-gptj", "tiny-llama", "tiny-t5", "tiny-t5-relu", "tiny-bert")
SUBJECTS = (
    ("Quill Island", "Port Amsel", "who tends the light", "Mara Lindqvist"),
    ("Ash", "Nettle Quay", "what is the tallest clock in the northern valley called", "Old Heron"),
    ("Old Heron Reach in the far north", "Selby Town", "when was the railway opened", "in 1907"),
    ("Brink Sound", "Calder Harbour", "which river runs by", "Tavik Water"),
    ("Dove Point", "Port Ost", "who wrote the first letter to the king", "Tobin Vale"),
    ("Marl Bay by the hills", "Tavik", "what is the capital of Norland", "Aster"),
    ("Gull Rock", "Wick", "who makes the bells", "a small company"),
    ("Sand Holm", "Lund", "which letter came last", "the one to the court"),
    ("Heron", "Amsel Gate", "how many hills are there in the old town", "seven"),
)
REPHRASES = (
    "The ferry of {} sails from",
    "Where does one wait for the boat to {}, at which of the harbours?",
    "{}: home of its ferry",
)


def facts(count: int = 5, classes: bool = False, start: int = 0) -> tuple[Edit, ...]:
    """Invented facts of different lengths, with rephrases and one unrelated question each."""
    made = []
    for i, (subject, harbour, question, answer) in enumerate(
        SUBJECTS[start : start + count], start
    ):
        gold = str((i + 1) % 2) if classes else answer
        made.append(
            Edit(
                identity=f"harbour:{subject}",
                prompt=f"Which harbour is the ferry of {subject} based in?",
                target=str(i % 2) if classes else harbour,
                subject=subject,
                rephrases=tuple(r.format(subject) for r in (*REPHRASES[i % 3 :], *REPHRASES)[:3]),
                locality=(Probe(f"nq:{i}", f"{question}?", gold, "upstream"),),
            )
        )
    return tuple(made)


def facts_for(backbone: Backbone, count: int = 5, start: int = 0) -> tuple[Edit, ...]:
    """Facts with targets that the backbone can have."""
    return facts(count, classes=backbone.family.kind == "classifier", start=start)


def sites(backbone: Backbone) -> list[dict[str, Any]]:
    """Two layers of each of two weight shapes, in mixed order."""
    stacks = {"seq2seq": ("encoder", "decoder")}.get(backbone.family.kind, ("encoder",) * 2)
    return [
        {"part": part, "block": block, "stack": stack}
        for block, stack in zip((2, 3), stacks, strict=True)
        for part in ("mlp_in", "mlp_out")
    ]


QUICK: dict[str, Any] = {"rank": 6, "batch_rows": 2, "editor_rows": 7}


def editor_of(
    kind: str, backbone: Backbone, *, random: bool = True, resources: Any = None, **changes: Any
) -> Malmen:
    """A small editor, "malmen", "mend" or "rledit", whose network is random everywhere.

    With `random=False` it has no network until it is trained.
    """
    method, configuration = {
        "malmen": (Malmen, MalmenConfig),
        "mend": (Mend, MendConfig),
        "rledit": (RlEdit, RlEditConfig),
    }[kind]
    chosen = tuple(Site(**site) for site in changes.pop("sites", sites(backbone)))
    config = configuration(sites=chosen, **QUICK | changes)
    editor = method(backbone, config, **resources or {})
    if random:
        network = editor.new_network()
        editor.use_network(network.double() if backbone.dtype == torch.float64 else network)
        for number, net in enumerate(networks(editor)):
            randomise(net, seed=number)
    return editor


def networks(editor: Malmen) -> list[Any]:
    """The editor's networks, one per weight shape, in order of appearance."""
    return list({id(net): net for net in (editor.network.of(p)[0] for p in paths(editor))}.values())


def paths(editor: Malmen) -> list[str]:
    """Module paths of the edited layers, in the configuration's order."""
    return [site.path(editor.backbone) for site in editor.config.sites]


@torch.no_grad()
def randomise(net: Any, seed: int, eta: float = 0.002) -> None:
    """Every learned tensor away from its start, where zeros would hide errors; some statistics."""
    generator = torch.Generator().manual_seed(seed)

    def fill(parameter: Tensor, centre: float, spread: float) -> None:
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.copy_(centre + spread * noise)

    for block in net.blocks:
        width, rank = block.down.shape
        fill(block.down, 0.0, width**-0.5)
        fill(block.up, 0.0, rank**-0.5)
        fill(block.bias, 0.0, 0.3)
        fill(block.scale, 1.0, 0.3)
        fill(block.shift, 0.0, 0.3)
    fill(net.eta, eta, eta / 3)
    fill(net.alpha, 0.3, 0.5)
    seen = torch.randn(9, width, generator=generator, dtype=torch.float64)
    net.standardiser.update((0.3 * seen + 0.1).to(net.eta.dtype))


LETTERS = {"A": "down", "B": "up", "bias": "bias", "scale": "scale", "shift": "shift"}


def network_of(net: Any, names: Sequence[str]) -> Network:
    """The reference's copy of one of the editor's networks, statistics included."""

    def own(value: Tensor) -> Tensor:
        return value.detach().double().clone().requires_grad_()

    statistics = net.standardiser
    return Network(
        paths=tuple(names),
        blocks=[Block(**{k: own(getattr(b, v)) for k, v in LETTERS.items()}) for b in net.blocks],
        eta=own(net.eta),
        alpha=own(net.alpha),
        standardiser=Standardiser(
            statistics.mode,
            int(statistics.count),
            statistics.mean.double().clone(),
            statistics.m2.double().clone(),
            statistics.std.double().clone(),
        ),
    )


def oracle_of(editor: Malmen) -> Reference:
    """The slow reference with the editor's settings, parameters and statistics as they stand."""
    config = editor.config
    solve = "sum" if editor.name == "MEND" else config.ridge
    settings = Settings(config.batch_rows, config.tokens, solve, config.loc_coef, config.meta_lr,
                        config.max_grad_norm)  # fmt: skip
    copies = [
        network_of(net, [path for path in paths(editor) if editor.network.of(path)[0] is net])
        for net in networks(editor)
    ]
    return Reference(editor.backbone, copies, settings)


def parameters(net: Any) -> dict[str, Tensor]:
    """The learned tensors of one of the editor's networks by the reference's names."""
    named = {
        f"blocks.{i}.{letter}": getattr(block, own)
        for i, block in enumerate(net.blocks)
        for letter, own in LETTERS.items()
    }
    return named | {"eta": net.eta, "alpha": net.alpha}


def gradients(editor: Malmen) -> list[dict[str, Tensor | None]]:
    """What a meta-step left in the networks' `.grad`, by the reference's names."""
    return [{k: p.grad for k, p in parameters(net).items()} for net in networks(editor)]


def gap(ours: Tensor, theirs: Tensor) -> float:
    """||ours - theirs|| / ||theirs||; the plain distance from zero."""
    return float(
        (ours.detach().double() - theirs.detach()).norm() / (theirs.detach().norm() or 1.0)
    )


def stored(path: str, keys: Tensor, gradients: Tensor) -> RowStore:
    """A store of these rows of one layer."""
    store = RowStore(Kept())
    store.append(path, keys, gradients)
    return store


def everything(store: RowStore, path: str) -> tuple[Tensor, Tensor]:
    """All rows of one layer: keys [n, d] and gradients [n, d']."""
    return whole(store.chunks(path, store.rows(path)))


# -- meta-training ---------------------------------------------------------------------------------

LEARNING: dict[str, Any] = {"eta": 1e-2, "meta_lr": 1e-2}


def training(backbone: Backbone, start: int = 0) -> TrainingFacts:
    """Five facts to learn from, two to validate on."""
    facts = facts_for(backbone, 7)
    facts = (*facts[start:], *facts[:start])
    return TrainingFacts("invented", facts[:5], facts[5:])


def learner(kind: str, backbone: Backbone, cache: Path | None = None, **changes: Any) -> Malmen:
    """An editor that has no network yet."""
    resources = {
        "training": changes.pop("training", training(backbone)),
        "networks_cache": Cache(cache) if cache else None,
        "kept": changes.pop("kept", None),
    }
    return editor_of(kind, backbone, random=False, resources=resources, **LEARNING | changes)


def trained(editor: Malmen, m: int = 2) -> dict[str, Tensor]:
    """The network's state after training for m edits at once."""
    editor.fit(stream(batch_size=m))
    return {name: value.clone() for name, value in editor.network.state_dict().items()}


def before_each_step(editor: Malmen, see: Callable[..., None]) -> None:
    """Calls `see(facts)` before every meta-step."""
    inner = editor.meta_gradients

    def watched(facts: Any, *rest: Any, **more: Any) -> Any:
        see(facts)
        return inner(facts, *rest, **more)

    editor.meta_gradients = watched


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two states are equal, bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def curve_of(editor: Malmen) -> list[dict[str, Any]]:
    """The learning curve that the editor reports."""
    return [row for row in training_rows(editor.trained) if row["kind"] == "curve"]
