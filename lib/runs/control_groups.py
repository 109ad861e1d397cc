"""The memory that Linux control groups (a container, a batch job) leave to this process.

Every group that the process is in, from its own up to the outermost, may have a limit. A container
sees its own group at the top of the mounted tree, whatever the kernel calls it: folders that the
tree does not have are passed over.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

# By version: folder of the tree, files with limit and use, and what begins the two lines of
# memory.stat on cached files, which the kernel drops before it refuses memory.
_VERSIONS = {
    1: ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    2: ("", "memory.max", "memory.current", ""),
}
_CACHED = ("active_file", "inactive_file")


def memory_limits(
    membership: Path = Path("/proc/self/cgroup"), tree: Path = Path("/sys/fs/cgroup")
) -> list[tuple[int, int]]:
    """(limit, what of it is used) in bytes, for every group with a memory limit that this process
    is in; empty where there are none, as on other systems than Linux."""
    found = []
    for folder, version in _groups(membership, tree):
        _, limit_file, use_file, prefix = _VERSIONS[version]
        with contextlib.suppress(OSError, ValueError):  # no limit: "max", or no such file
            limit, used = (int((folder / name).read_text()) for name in (limit_file, use_file))
            lines = (folder / "memory.stat").read_text("utf-8").splitlines()
            counts = dict(line.split(" ", 1) for line in lines)
            cached = sum(int(counts.get(f"{prefix}{name}", 0)) for name in _CACHED)
            found.append((limit, max(used - cached, 0)))
    return found


def _groups(membership: Path, tree: Path) -> Iterator[tuple[Path, int]]:
    """The folders of the groups that count memory, with the version of the interface."""
    try:
        lines = membership.read_text("utf-8").splitlines()
    except OSError:
        return
    for line in lines:  # "4:memory:/a/b" in version 1, "0::/a/b" in version 2
        _, controllers, name = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        version = 1 if controllers else 2
        top, group = tree / _VERSIONS[version][0], PurePosixPath(name.lstrip("/"))
        for part in (group, *group.parents):
            yield top / part, version
