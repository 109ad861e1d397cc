"""What decides a run's name in the store, and what does not."""

from dataclasses import replace
from pathlib import Path

import pytest

from lib.errors import StoreError
from lib.runs import plan
from lib.runs.execute import execute
from lib.runs.progress import LineProgress
from lib.runs.resources import Resources
from lib.runs.store import Store
from lib.storage import fingerprints
from lib.storage.fingerprints import content_hash
from tests.runs.test_execute import smoke_runs

CONTENTS = {"backbone": "b", "stream": "s"}


def identities(paper: str = "melo", **options: object) -> list[str]:
    """As another process would find them, the contents of all materials being known."""
    fingerprints._parts.cache_clear()
    fingerprints.code.cache_clear()
    runs = plan.runs(paper, "smoke", **{"device": "cpu"} | options)
    return [replace(run, contents=CONTENTS).identity for run in runs]


def asks(**options: object) -> list[str]:
    fingerprints._parts.cache_clear()
    fingerprints.code.cache_clear()
    return [run.asks for run in plan.runs("melo", "smoke", **{"device": "cpu"} | options)]


@pytest.fixture
def edited(monkeypatch):
    """Sources as if a file of the library were edited."""
    read = Path.read_text

    def edit(ending: str, before: str, after: str) -> None:
        def text(file: Path, *arguments: object, **keywords: object) -> str:
            found = read(file, *arguments, **keywords)
            if not str(file).endswith(ending):
                return found
            assert before in found
            return found.replace(before, after, 1)

        monkeypatch.setattr(Path, "read_text", text)

    yield edit
    monkeypatch.undo()
    fingerprints._parts.cache_clear()
    fingerprints.code.cache_clear()


# (file, what stands there, what is put there instead)
DECIDES_ALL = {
    "how values become a configuration": (
        "editors/__init__.py",
        "def build(",
        "X = 1\n\ndef build(",
    ),
    "how values are checked": ("storage/checked.py", "def checked(", "X = 1\n\ndef checked("),
    "what is resumed": ("runs/execute.py", "start_batch=start,", "start_batch=start + 1,"),
    "how answers are scored": (
        "metrics/scores.py",
        "def exact_match(",
        "X = 1\n\ndef exact_match(",
    ),
    "where a subject stands": (
        "data/records.py",
        "def find_subject(",
        "X = 1\n\ndef find_subject(",
    ),
    "how prompts are encoded": ("backbones/encoding.py", "IGNORED = -100", "IGNORED = -101"),
}
DECIDES_NOTHING = {
    "a docstring": ("errors.py", '"""', '"""One more word. '),
    "a comment": ("editors/adapters/melo.py", "from lib", "# a word\nfrom lib"),
    "the store": ("runs/store.py", "TABLES =", "MORE = 1\nTABLES ="),
    "a progress line": ("runs/progress.py", "import", "MORE = 1\nimport"),
    "a dataset's reader": ("data/published/scotus.py", "def load(", "MORE = 1\n\ndef load("),
    "a backbone": ("sources/catalogue.py", "ENTRIES", "MORE = 1\nENTRIES"),
    "a figure": ("report/figures/style.py", "import", "MORE = 1\nimport"),
}


@pytest.mark.parametrize("change", DECIDES_ALL)
def test_code_that_decides_reruns_everything(edited, change: str) -> None:
    before = identities()
    edited(*DECIDES_ALL[change])
    assert set(identities()).isdisjoint(before)


@pytest.mark.parametrize("change", DECIDES_NOTHING)
def test_code_that_decides_nothing_reruns_nothing(edited, change: str) -> None:
    before = identities()
    edited(*DECIDES_NOTHING[change])
    assert identities() == before


def test_one_editors_code_reruns_its_runs_alone(edited) -> None:
    runs, before = plan.runs("melo", "smoke", device="cpu"), identities()
    edited("editors/memory/grace.py", "\nimport torch\n", "\nimport torch\n\nMORE = 1\n")
    changed = {run.editor for run, a, b in zip(runs, before, identities(), strict=True) if a != b}
    assert "GRACE" in changed and not {"FT", "LoRA", "MEND"} & changed


def test_readers_are_asked_again_when_they_change(edited) -> None:
    before = asks()
    edited(*DECIDES_NOTHING["a dataset's reader"])
    assert set(asks()).isdisjoint(before)


@pytest.mark.parametrize("options", [{"device": "cuda"}, {"threads": 2}], ids=["device", "threads"])
def test_arithmetic_decides(options: dict) -> None:
    assert set(identities(**options)).isdisjoint(identities())
    assert set(asks(**options)).isdisjoint(asks())


def test_threads_of_a_cpu_decide_nothing_on_a_gpu() -> None:
    assert identities(device="cuda", threads=2) == identities(device="cuda")


@pytest.mark.parametrize("part", ["backbone", "stream"])
def test_contents_decide(part: str) -> None:
    run = smoke_runs()["FT"]
    one, other = (replace(run, contents=CONTENTS | {part: value}) for value in "xy")
    assert one.identity != other.identity


def test_runs_that_ask_differently_for_the_same_are_the_same() -> None:
    run = smoke_runs()["FT"]
    other = replace(run, spec=run.spec | {"known": 7})
    assert other.asks != run.asks
    assert replace(other, contents=CONTENTS).identity == replace(run, contents=CONTENTS).identity


def test_a_run_with_other_weights_of_the_same_name_is_another_run(tmp_path, monkeypatch) -> None:
    """A backbone that is tuned on two machines: one name, two sets of weights."""
    run, store, made = smoke_runs()["FT"], Store(tmp_path), Resources.materials
    assert execute(run, store, Resources(), LineProgress())
    first = store.told(run).identity

    def elsewhere(self, *arguments):
        found = made(self, *arguments)
        return replace(found, backbone=replace(found.backbone, content=content_hash("other")))

    monkeypatch.setattr(Resources, "materials", elsewhere)
    monkeypatch.setattr(Store, "told", lambda self, run: run)  # the note is not known here
    assert execute(run, Store(tmp_path), Resources(), LineProgress())
    monkeypatch.undo()
    second = Store(tmp_path).told(run).identity
    assert second != first
    assert {first, second} == {p.parent.name for p in store.root.glob("*/manifest.json")}


def test_a_run_that_was_computed_with_another_reader_is_found_again(tmp_path, edited) -> None:
    run, store = smoke_runs()["FT"], Store(tmp_path)
    assert execute(run, store, Resources(), LineProgress())
    whole = store.finished(run)
    edited(*DECIDES_NOTHING["a dataset's reader"])
    identities()  # forgets what was read of the sources
    again = smoke_runs()["FT"]
    assert store.state(again) == "to do"
    assert execute(again, store, Resources(), LineProgress())
    assert store.finished(again).manifest == whole.manifest
    assert len(list(store.root.glob("*/manifest.json"))) == 1


# -- a disk that stutters ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["manifest.json", "records.parquet", "editor"])
def test_a_passing_read_error_deletes_nothing(tmp_path, monkeypatch, name: str) -> None:
    run, store = smoke_runs()["FT"], Store(tmp_path)
    assert execute(run, store, Resources(), LineProgress())
    whole = store.finished(run)
    opened = Path.open

    def stutters(file: Path, *arguments: object, **keywords: object):
        if name in (file.name, file.parent.name):
            raise OSError(5, "Input/output error", str(file))
        return opened(file, *arguments, **keywords)

    monkeypatch.setattr(Path, "open", stutters)
    with pytest.raises(StoreError, match=r"Input/output error\. The run is kept"):
        store.finished(run)
    monkeypatch.undo()
    assert store.finished(run).records.equals(whole.records)


def test_a_damaged_run_is_set_aside_not_deleted(tmp_path, capsys) -> None:
    run, store = smoke_runs()["FT"], Store(tmp_path)
    assert execute(run, store, Resources(), LineProgress())
    folder = store.root / store.told(run).identity
    (folder / "steps.parquet").write_bytes(b"torn")
    assert store.finished(run) is None and not folder.exists()
    assert (store.root / f".{folder.name}.damaged-1" / "records.parquet").exists()
    assert "set aside" in capsys.readouterr().err
