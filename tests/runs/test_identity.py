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
from lib.runs.study import Study
from lib.storage import fingerprints
from lib.storage.fingerprints import content_hash
from tests.runs.test_execute import smoke_runs

MORE = "\nMORE = 1\n"
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
            return found.replace(before, after, 1) if before else found + after

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
    "how values are checked": ("storage/checked.py", "", MORE),
    "what is resumed": ("runs/execute.py", "start_batch=start,", "start_batch=start + 1,"),
    "how answers are scored": (
        "metrics/scores.py",
        "",
        MORE,
    ),
    "where a subject stands": (
        "data/records.py",
        "",
        MORE,
    ),
    "how prompts are encoded": ("backbones/encoding.py", "IGNORED = -100", "IGNORED = -101"),
}
DECIDES_NOTHING = {
    "another editor": (
        "editors/registry.py",
        "REGISTRY = {",
        'REGISTRY = {"another": ("lib.editors.finetune", "FtL", "FtLConfig", WEIGHTS),',
    ),
    "a docstring": ("errors.py", '"""', '"""One more word. '),
    "a comment": ("editors/adapters/melo.py", "from lib", "# a word\nfrom lib"),
    "the store": ("runs/store.py", "", MORE),
    "a progress line": ("runs/progress.py", "", MORE),
    "a dataset's reader": ("data/published/scotus.py", "", MORE),
    "a backbone": ("sources/catalogue.py", "", MORE),
    "a figure": ("report/figures/style.py", "", MORE),
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
    edited("editors/memory/grace.py", "", MORE)
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


# -- what else decides ---------------------------------------------------------------------------


def test_a_local_folder_that_a_name_stands_for_is_asked_for(tmp_path, monkeypatch) -> None:
    before = asks()
    for name in {run.spec["backbone"] for run in plan.runs("melo", "smoke", device="cpu")}:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    monkeypatch.setenv("STUDY_MODELS", str(tmp_path))
    local = asks()
    assert set(local).isdisjoint(before)
    for folder in tmp_path.iterdir():
        (folder / "model.safetensors").write_bytes(b"other weights")
    assert set(asks()).isdisjoint(local)


def test_an_editor_that_loads_other_backbones_is_told_by_them(
    edited, tmp_path, monkeypatch
) -> None:
    def names() -> dict[str, list[str]]:
        runs = plan.runs("elder", "smoke", device="cpu")
        found = zip(runs, identities("elder"), strict=True)
        return {run.editor: name for run, name in found if not run.sweep}

    before = names()
    edited("sources/conversions.py", "", MORE)
    changed = {editor for editor, name in names().items() if name != before[editor]}
    assert changed == {"SERAC"}


def test_only_runs_that_ask_general_tasks_are_told_by_their_data(monkeypatch, tmp_path) -> None:
    runs = plan.runs("elder", "paper", device="cpu", source="hub")
    assert all("general" in run.spec for run in runs if run.spec["protocol"].get("lm_eval"))
    assert not any("general" in run.spec for run in runs if not run.spec["protocol"].get("lm_eval"))


def test_a_damaged_checkpoint_starts_the_run_anew(tmp_path, monkeypatch, capsys) -> None:
    import lib.runs.execute

    run, store = smoke_runs()["MELO"], Store(tmp_path)
    plain = lib.evaluation.protocol.run_sequence

    def stopping(*arguments, after_batch, **keywords):
        def stop(done: int) -> None:
            after_batch(done)
            raise KeyboardInterrupt

        return plain(*arguments, after_batch=stop, **keywords)

    monkeypatch.setattr(lib.runs.execute, "run_sequence", stopping)
    with pytest.raises(KeyboardInterrupt):
        execute(run, store, Resources(checkpoint_seconds=0.0), LineProgress())
    monkeypatch.undo()
    saved = next((tmp_path / "runs").glob(".*.work/checkpoint/editor/*.safetensors"))
    content = saved.read_bytes()
    saved.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert execute(run, store, Resources(), LineProgress())
    assert "not what the checkpoint kept; the run starts anew" in capsys.readouterr().err


def test_runs_whose_materials_changed_meanwhile_are_done_again(tmp_path, monkeypatch) -> None:
    """Weights that were tuned anew, on another processor, while half of a study was done."""
    study = Study.open("melo", "smoke", output=tmp_path)
    study.runs = [run for run in study.runs if run.setting == "zsre-t5" and not run.sweep][:3]
    assert len({run.asks for run in study.runs}) == 1
    first, made = study.runs[:1], Resources.materials
    assert execute(first[0], study.store, study.resources, LineProgress())

    def elsewhere(self, *arguments):
        found = made(self, *arguments)
        return replace(found, backbone=replace(found.backbone, content=content_hash("other")))

    monkeypatch.setattr(Resources, "materials", elsewhere)
    study.runs = [study.store.told(run) for run in study.runs]
    assert study.run_missing(quiet=True)
    assert study.to_do() == [] and len(study.runs) == 3
