"""Reading members of zip and tar.gz archives as streams, and hashing files, in small memory."""

import contextlib
import hashlib
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from lib.errors import AssetError

CHUNK = 1 << 20


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file, read in chunks of 1 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


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
