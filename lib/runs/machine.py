"""What a run can use and what it used: device, arithmetic, peak memory, versions, commit."""

import contextlib
import datetime
import os
import platform
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import psutil
import torch

from lib.storage import fingerprints

# Instruction sets that multiply in a dtype, as `torch.cpu.get_capabilities` calls them.
ARITHMETIC = {
    "bfloat16": ("avx512_bf16", "amx_bf16", "bf16"),
    "float16": ("avx512_fp16", "amx_fp16", "fp16_arith"),
}
# The values of DNNL_MAX_CPU_ISA that leave none of them.
_NEITHER = (
    "SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI",
)  # fmt: skip
LIMITS = {"bfloat16": _NEITHER, "float16": (*_NEITHER, "AVX512_CORE_BF16")}

# By version: folder of the tree, files with limit and use, and what begins the two lines of
# memory.stat on cached files, which the kernel drops before it refuses memory.
_VERSIONS = {
    1: ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    2: ("", "memory.max", "memory.current", ""),
}
_CACHED = ("active_file", "inactive_file")


class PeakMemory:
    """Largest resident size (CPU) or allocation (CUDA) while the context is open, in bytes."""

    def __init__(self, device: str, every: float = 0.1) -> None:
        self.device, self.every, self.bytes = device, every, 0

    def __enter__(self) -> "PeakMemory":
        self._stop = threading.Event()
        if self.device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats()
        else:
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def _watch(self) -> None:
        process = psutil.Process()
        while True:
            self.bytes = max(self.bytes, process.memory_info().rss)
            if self._stop.wait(self.every):
                return

    def __exit__(self, *_exception: object) -> None:
        if self.device.startswith("cuda"):
            self.bytes = torch.cuda.max_memory_allocated()
        else:
            self._stop.set()
            self._thread.join()


def default_device() -> str:
    """ "cuda" where a GPU can be used, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def cpu_computes_in(dtype: str) -> bool:
    """Whether PyTorch multiplies in `dtype` with instructions of this processor; where it does not,
    it emulates them, many times slower than float32.

    The processor is asked for its instructions and no product is timed: the answer decides a run's
    identity, so it must not depend on what else the machine does. `get_capabilities` does not see
    what ATEN_CPU_CAPABILITY and DNNL_MAX_CPU_ISA leave of them, and without oneDNN (a Mac's
    PyTorch) they are not used.
    """
    if dtype == "float32":
        return True
    found = torch.cpu.get_capabilities()
    if found["architecture"] == "x86_64" and torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False  # attention in bfloat16 would even be an error
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA", "")
    return (
        any(found.get(name) for name in ARITHMETIC[dtype])
        and torch.backends.mkldnn.is_available()
        and limit.upper() not in LIMITS[dtype]
    )


def memory_limits(
    membership: Path = Path("/proc/self/cgroup"), tree: Path = Path("/sys/fs/cgroup")
) -> list[tuple[int, int]]:
    """(limit, what of it is used) in bytes, for every Linux control group with a memory limit (a
    container, a batch job) that this process is in, from its own up to the outermost; empty where
    there are none. A container sees its own group at the top of the mounted tree, whatever the
    kernel calls it: folders that the tree does not have are passed over."""
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


def available_gigabytes(device: str) -> float:
    """Memory that a run could still take on the device: what is free and what the limit of a
    container leaves."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info()[0] / 2**30
    left = [limit - used for limit, used in memory_limits()]
    return max(min([psutil.virtual_memory().available, *left]), 0) / 2**30


def memory_gigabytes(device: str) -> float:
    """All memory of the device that this process could have, were nothing else there: the
    machine's, or its container's limit."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info()[1] / 2**30
    return min([psutil.virtual_memory().total, *(limit for limit, _ in memory_limits())]) / 2**30


def git_commit() -> str:
    """Commit of the study's checkout, with "+changes" if files differ; "unknown" outside git."""

    def git(*arguments: str) -> str:
        folder = Path(__file__).parent
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    with contextlib.suppress(OSError, subprocess.SubprocessError):
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changed else "")
    return "unknown"


def provenance(device: str) -> dict[str, Any]:
    """Versions, hardware, commit and day (UTC) for a manifest."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": {"python": platform.python_version(), **fingerprints.versions()},
        "git_commit": git_commit(),
        "device": torch.cuda.get_device_name()
        if device.startswith("cuda")
        else fingerprints.processor(),
        "threads": torch.get_num_threads(),
    }


@contextlib.contextmanager
def deterministic(seed: int, threads: int | None = None) -> Iterator[None]:
    """Global generators seeded, TF32 off, and as many threads as given, while a run goes on."""
    import random

    import numpy

    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    usual = torch.get_num_threads()
    torch.set_num_threads(threads or usual)
    try:
        yield
    finally:
        torch.set_num_threads(usual)
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
