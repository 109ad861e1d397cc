"""Memory limits of containers and batch jobs, as both versions of control groups tell them."""

from pathlib import Path

import psutil
import pytest

from lib.runs import machine

GIB = 2**30
UNLIMITED = {1: "9223372036854771712", 2: "max"}
NAMES = {1: ("memory.limit_in_bytes", "memory.usage_in_bytes"), 2: ("memory.max", "memory.current")}


def group(
    folder: Path, version: int, limit: float | None, used: float, cached: float = 0.0
) -> None:
    """A group's folder as the kernel shows it; amounts in GiB."""
    folder.mkdir(parents=True, exist_ok=True)
    limit_file, use_file = NAMES[version]
    told = UNLIMITED[version] if limit is None else str(round(limit * GIB))
    (folder / limit_file).write_text(f"{told}\n")
    (folder / use_file).write_text(f"{round(used * GIB)}\n")
    prefix, half = "total_" if version == 1 else "", round(cached * GIB / 2)
    (folder / "memory.stat").write_text(
        f"anon 5\n{prefix}inactive_file {half}\n{prefix}active_file {half}\nfile_mapped 7\n"
    )


@pytest.fixture
def tree(tmp_path: Path, monkeypatch) -> Path:
    """An empty tree that the library reads; `belongs` says of which groups the process is."""
    plain = machine.memory_limits
    monkeypatch.setattr(
        machine, "memory_limits", lambda: plain(tmp_path / "membership", tmp_path / "tree")
    )
    monkeypatch.setattr(
        psutil, "virtual_memory", lambda: type("V", (), {"available": 20 * GIB, "total": 24 * GIB})
    )
    return tmp_path / "tree"


def belongs(tree: Path, *lines: str) -> None:
    (tree.parent / "membership").write_text("\n".join(lines) + "\n")


def test_without_groups_the_machine_is_all(tree: Path) -> None:
    assert (machine.available_gigabytes("cpu"), machine.memory_gigabytes("cpu")) == (20, 24)
    belongs(tree, "12:pids:/x", "0::/")
    assert (machine.available_gigabytes("cpu"), machine.memory_gigabytes("cpu")) == (20, 24)


@pytest.mark.parametrize(
    ("version", "line"), [(1, "4:cpu,memory:/jobs/night"), (2, "0::/jobs/night")]
)
def test_the_tightest_of_nested_groups_counts(tree: Path, version: int, line: str) -> None:
    top = tree / "memory" if version == 1 else tree
    belongs(tree, "9:cpuset:/", line)
    group(top, version, None, 19)
    group(top / "jobs", version, 6, 5)
    group(top / "jobs" / "night", version, 8, 3)
    assert machine.available_gigabytes("cpu") == pytest.approx(1)
    assert machine.memory_gigabytes("cpu") == pytest.approx(6)
    group(top / "jobs", version, None, 5)
    assert machine.available_gigabytes("cpu") == pytest.approx(5)
    assert machine.memory_gigabytes("cpu") == pytest.approx(8)


@pytest.mark.parametrize("version", [1, 2])
def test_cached_files_are_free_and_too_much_is_nothing(tree: Path, version: int) -> None:
    belongs(tree, "3:memory:/" if version == 1 else "0::/")
    top = tree / "memory" if version == 1 else tree
    group(top, version, 4, 3.5, cached=2)
    assert machine.available_gigabytes("cpu") == pytest.approx(2.5)
    group(top, version, 4, 5)
    assert machine.available_gigabytes("cpu") == 0


@pytest.mark.parametrize("version", [1, 2])
def test_a_container_sees_its_own_group_at_the_top(tree: Path, version: int) -> None:
    outside = "/boxes/0a1b/../0a1b"
    belongs(tree, f"5:memory:{outside}" if version == 1 else f"0::{outside}")
    group(tree / "memory" if version == 1 else tree, version, 2, 0.5)
    assert machine.available_gigabytes("cpu") == pytest.approx(1.5)
    assert machine.memory_gigabytes("cpu") == pytest.approx(2)


def test_this_machine_can_be_asked() -> None:
    assert 0 <= machine.available_gigabytes("cpu") <= machine.memory_gigabytes("cpu") > 0
