"""What a paper's YAML files may hold, as types: a key that none of them names is refused.

Streams take the arguments of the functions that make them, protocols and lessons those of their
dataclasses; configurations of editors are checked by `lib.editors`.
"""

import dataclasses
import inspect
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Tag, create_model

from lib.backbones.tuning.classes import ClassifierConfig
from lib.data.streams import STREAMS
from lib.evaluation.evaluator import Protocol
from lib.storage.checked import FORBID, Described

Better = Literal["higher", "lower"]


class Reported(Described):
    """Where the paper's numbers stand: the model and the dataset of its tables."""

    model: str
    dataset: str


class Cost(Described):
    """What a run is expected to take: seconds in all and per edit, and peak memory."""

    seconds: float
    seconds_per_edit: float
    gigabytes: float


class Training(Described):
    """Facts that editors are trained on (None: all), and the published file they come from."""

    n_train: int | None
    n_valid: int
    variant: str | None = None


class Questions(Described):
    """How many questions a backbone is tuned on before it is edited."""

    upstream: int
    near: int


@dataclasses.dataclass(frozen=True)
class Lessons(ClassifierConfig):
    """How many texts a classifier is tuned on (None: all that are left), and how."""

    __pydantic_config__ = FORBID

    claims: int | None = None
    documents: int | None = None
    taught: int | None = None
    held_out: int = 0


def _lessons(tune: Any) -> str:
    return "lessons" if {"claims", "documents"} & set(tune or ()) else "questions"


Tune = Annotated[
    Annotated[Lessons, Tag("lessons")] | Annotated[Questions, Tag("questions")],
    Discriminator(_lessons),
]


def _stream(kind: str) -> Any:
    """The type of a setting's `stream` of this kind."""
    arguments = inspect.signature(STREAMS[kind]).parameters.values()
    taken = {
        one.name: (one.annotation, ... if one.default is one.empty else one.default)
        for one in arguments
        if one.kind is one.KEYWORD_ONLY and one.name != "seed"
    }
    more = {"limit": (int | None, None), "first": (int | None, None), "n_general": (int, 0)}
    more |= {"kind": (Literal[kind], kind), "flip_predictions": (bool, False)}
    more |= {"unanswered": (bool, False)}
    return create_model(f"{kind} stream", __base__=Described, **taken, **more)


Stream = Annotated[
    Annotated[_stream("balanced"), Tag("balanced")]
    | Annotated[_stream("records"), Tag("records")]
    | Annotated[_stream("documents"), Tag("documents")]
    | Annotated[_stream("passages"), Tag("passages")],
    Discriminator(lambda stream: stream.get("kind", "balanced")),
]


class Editor(Described):
    """An editor of a setting: its kind, what it changes of its settings on the backbone
    (`lib/editors/settings`), and what it changes of the setting's stream, protocol and cost."""

    kind: str
    changes: dict[str, Any] = {}
    stream: dict[str, Any] = {}
    protocol: dict[str, Any] = {}
    cost: dict[str, Any] = {}


class Sweep(Described):
    """Runs of some editors that differ in one value: of their configuration, or of the setting's
    `stream.` or `protocol.`. `retrains`: whether the editor's training depends on it. `stream` and
    `protocol`: what all runs of the sweep change of the setting's."""

    title: str
    editors: list[str]
    parameter: str
    values: list[Any]
    retrains: bool | None = None
    stream: dict[str, Any] = {}
    protocol: dict[str, Any] = {}


class Setting(Described):
    """A dataset, a backbone, a stream of edits, how it is scored, and the editors that edit it.
    `like`: the "page/setting" whose backbone, stream and protocol it takes over."""

    title: str
    like: str | None = None
    reported: Reported | None
    dataset: str
    variant: str | None = None
    folders: list[str] | None = None
    backbone: str
    dtype: str | None = None
    tune: Tune | None = None
    known: int | None = None
    corpus: str | None = None
    training: Training | None = None
    seeds: int
    enabled: bool = True
    stream: Stream
    protocol: Protocol
    editors: dict[str, Editor]
    sweeps: dict[str, Sweep] = {}
    cost: Cost


class Part(BaseModel):
    """Some keys of a `Setting`, which are checked once the parts are laid over each other."""

    model_config = ConfigDict(extra="allow")

    editors: dict[str, dict[str, Any] | None] = {}
    sweeps: dict[str, dict[str, Any] | None] = {}


class Common(Described):
    """The paper's own settings; `every` is laid under each of them."""

    datasets: list[str]
    every: Part = Part()
    settings: dict[str, Part]


class Profile(Described):
    """What a profile changes: in `every` setting, in some of them; and those that it leaves out.
    `extends`: the profile whose changes come before."""

    extends: str | None = None
    every: Part = Part()
    settings: dict[str, Part] = {}
    leaves_out: list[str] = []


class Column(Described):
    """A column of a table: its head, the score and the rows it is read on, and how the paper's
    table or the one it was taken from calls it."""

    metric: str
    column: str = ""
    perplexity: str = ""
    subset: str
    reported: str = ""
    origin: str = ""


class Row(Described):
    """A row of a table, or an ablation: an editor or a swept value, and how the paper calls it."""

    key: str = ""
    what: str = ""
    shown: str = ""
    about: str = ""
    editor: str = ""
    sweep: str = ""
    value: str | int | float | bool | None = None
    reported: str = ""
    reported_as: str = ""


class Note(Described):
    """A remark below the tables of a model and dataset, or below those with some item."""

    text: str
    model: str = ""
    dataset: str = ""
    items: list[str] = []


class Head(Described):
    """How a column is headed here and called in the paper."""

    shown: str
    reported: str


Columns = list[Column] | dict[str, str | list[Column] | Head]
Counts = int | dict[str, int | dict[str, int]]


class Group(Described):
    """The columns of one dataset in a table of several."""

    title: str
    short: str
    n_reported: int
    columns: list[Column]
    note: str = ""


class Table(Described):
    """What a page lays out: rows, columns, notes, and what the paper reports in their place."""

    item: str = ""
    items: dict[str, str | dict[str, str]] = {}
    origin: str = ""
    settings: list[str] = []
    editors: list[str] = []
    order: list[str] = []
    rows: dict[str, Row] | list[Row] = []
    columns: Columns = []
    groups: dict[str, Group] = {}
    text: list[Column] = []
    classes: list[Column] = []
    metric: str = ""
    means: int = 0
    n_reported: Counts = 0
    not_run: dict[str, str] = {}
    unreported: str = ""
    note: str = ""
    notes: list[str | Note] = []
    epsilon: dict[int, int] = {}
    alike: list[float] = []
    width: int = 0
    most_edits: int = 0


class Panel(Described):
    """One of several tables or figures of a kind: the settings or the sweep behind it."""

    title: str = ""
    heading: str = ""
    locality: str = ""
    single: str = ""
    consecutive: str = ""
    log: bool = False
    efficacy: bool = False


def _layout(given: Any) -> str:
    if isinstance(given, list):
        return "list"
    return "panels" if all(isinstance(part, dict) for part in given.values()) else "table"


Layout = Annotated[
    Annotated[Table, Tag("table")]
    | Annotated[dict[str, Panel], Tag("panels")]
    | Annotated[list[str | Row], Tag("list")],
    Discriminator(_layout),
]


class Claim(Described):
    """A sentence, where it stands, the section that shows it, the test that judges it and the
    test's arguments (`lib.report.claims`); a value may be given for each dataset. `needs`,
    `settings`, `forms` and `protocol` say where it is judged, `given` what its page adds."""

    key: str
    sentence: str
    source: str
    shown: str = ""
    test: str
    editor: str = ""
    other: str = ""
    others: list[str] = []
    ours: list[str] = []
    metric: str | dict[str, str] = ""
    column: str = ""
    columns: list[str] = []
    than: str = ""
    parts: dict[str, str] = {}
    subset: str = ""
    subsets: list[str] = []
    moment: str = ""
    sweep: str = ""
    value: str = ""
    margin: float | dict[str, float] = 0.0
    better: Better | dict[str, Better] = "higher"
    strictly: bool = False
    behind: bool = False
    at_least: float | None = None
    at_most: float | None = None
    bound: float = 0.0
    times: float = 0.0
    facts: int = 0
    gigabytes: float = 0.0
    backbone: dict[str, str] = {}
    unchanged: list[str] = []
    prepared: list[str] = []
    beside: list[str] = []
    by_construction: bool = False
    because: list[str] = []
    missing: str = ""
    needs: list[str] = []
    settings: list[str] = []
    forms: list[str] = []
    protocol: str = ""
    given: list[str] = []


class Deviation(Described):
    """What the paper says, what its code does, what is done here, and what that changes."""

    paper: str
    code: str
    here: str
    effect: str


class Profiles(Described):
    """What every profile changes; the profile of the paper changes nothing."""

    paper: Profile | None
    laptop: Profile
    overnight: Profile
    gpu: Profile
    smoke: Profile


class Settings(Described):
    """A paper's settings.yaml: what it is and what is run for it."""

    title: str
    order: int
    short: str
    venue: str
    summary: str
    common: Common
    profiles: Profiles


class Page(Described):
    """A paper's page.yaml: what its page says beside the runs."""

    tables: dict[str, Layout] = {}
    claims: list[Claim]
    findings: list[Claim]
    deviations: list[Deviation]
