"""The study over a real scheduler: Slurm on this machine, one node, Snakemake's executor.

    ./run_all.sh --test -n 0 -m slurm tests/runs/schedule/test_slurm.py

needs root, Debian's `slurm-wlm` and `munge`, and the extra `[cluster]`; takes minutes.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lib.runs.settings import ROOT
from tests.runs.kills import differences, titles

PAPER = "side_by_side"
FLAGS = ("--profile", "smoke", "--only", PAPER, "--seeds", "1")
CONFIGURATION = Path("/etc/slurm/slurm.conf")
MINUTES = 60  # after which a call that hangs is killed
SLURM = """\
ClusterName=local
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool
SlurmctldLogFile={place}/log/ctld.log
SlurmdLogFile={place}/log/d.log
SlurmctldPidFile={place}/ctld.pid
SlurmdPidFile={place}/d.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory=8000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
SITE = """\
default-resources: ["slurm_partition=main"]
slurm-no-account: true
slurm-status-command: squeue  # there is no accounting
slurm-init-seconds-before-status-checks: 3
seconds-between-status-checks: 3
"""


def lacking() -> str:
    """Why no Slurm can be started here, "" if it can."""
    programs = ("slurmctld", "slurmd", "munged", "sbatch")
    absent = [
        name for name in programs if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    ]
    if absent:
        return f"Slurm is not installed ({', '.join(absent)}): apt-get install slurm-wlm munge"
    if os.getuid() != 0:
        return "only root can start a Slurm of its own"
    if CONFIGURATION.exists():
        return f"{CONFIGURATION} belongs to another Slurm"
    beside = Path(sys.executable).with_name("snakemake")
    if not (beside.is_file() or shutil.which("snakemake")):
        return "Snakemake is not installed: pip install '.[cluster]'"
    return ""


pytestmark = [pytest.mark.slurm, pytest.mark.skipif(bool(lacking()), reason=lacking())]


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[None]:
    """A Slurm with one node, this machine; its daemons end with the test."""
    for name in ("state", "spool", "log"):
        (tmp_path / name).mkdir()
    cores = os.environ.get("SLURM_TEST_CORES", "2")
    CONFIGURATION.parent.mkdir(exist_ok=True)
    CONFIGURATION.write_text(SLURM.format(host=socket.gethostname(), place=tmp_path, cores=cores))
    runtime = Path("/run/munge")
    runtime.mkdir(exist_ok=True)
    shutil.chown(runtime, "munge", "munge")
    began = not (runtime / "munge.socket.2").exists()
    if began:
        subprocess.run(["su", "-s", "/bin/sh", "munge", "-c", "/usr/sbin/munged"], check=True)
    try:
        for daemon in ("slurmctld", "slurmd"):
            subprocess.run([f"/usr/sbin/{daemon}"], check=True)
        until(lambda: "idle" in told("sinfo", "--noheader", "--format=%T"))
        yield
    finally:
        subprocess.run(["scancel", "--user", "root"], check=False)
        files = [tmp_path / "d.pid", tmp_path / "ctld.pid", *[runtime / "munged.pid"] * began]
        for file in files:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError, ValueError):
                os.kill(int(file.read_text()), signal.SIGTERM)
        CONFIGURATION.unlink()


def told(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def until(happened, ends: subprocess.Popen | None = None) -> None:
    """Wait until something happened, or a process ended before it did."""
    limit = time.monotonic() + 60 * MINUTES
    while not happened():
        assert time.monotonic() < limit and (ends is None or ends.poll() is None)
        time.sleep(0.2)


@contextlib.contextmanager
def study(output: Path, *flags: str) -> Iterator[subprocess.Popen]:
    """`./run_all.sh` under way; what is left of it at the end of the block is killed."""
    command = ["timeout", "-k", "10", f"{MINUTES}m", sys.executable, "-m", "lib", *FLAGS, *flags]
    profile = output.parent / "site"  # what a site says once for all of its calls
    profile.mkdir(exist_ok=True)
    (profile / "config.yaml").write_text(SITE)
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "SNAKEMAKE_PROFILE": str(profile)}
    call = subprocess.Popen(
        [*command, "--output", str(output)], env={**os.environ, **own}, start_new_session=True
    )
    try:
        yield call
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(call.pid, signal.SIGKILL)


def doing(output: Path) -> dict[int, str]:
    """The processes that do a run now, and the runs' names."""
    lines = told("pgrep", "--full", "--list-full", f"lib run .*{output}").splitlines()
    calls = (line.split() for line in lines)
    return {
        int(pid): call[call.index("run") + 1] for pid, *call in calls if call[0] == sys.executable
    }


def test_a_killed_job_is_begun_again_and_the_tables_are_those_of_one_machine(
    slurm: None, tmp_path: Path
) -> None:
    spread, alone, first = tmp_path / "spread", tmp_path / "alone", {}
    with study(spread, "--cluster", "slurm") as call:
        until(lambda: first.update(doing(spread)) or first, ends=call)
        killed, name = next(iter(first.items()))
        os.kill(killed, signal.SIGKILL)
        until(lambda: name in {**doing(spread), killed: ""}.values(), ends=call)
        assert call.wait() == 0
    assert (spread / "smoke" / f"{PAPER}.html").is_file()
    with study(alone, "--jobs", "1") as call:
        assert call.wait() == 0
    assert titles(alone / "smoke")
    assert differences(alone / "smoke", spread / "smoke") == []
