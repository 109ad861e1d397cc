"""Members of a cut zip are found by offset, across parts, and only whole and unchanged."""

import dataclasses
import hashlib
import random
import zipfile
from pathlib import Path

import pytest

from lib.errors import AssetError
from lib.split_archives import SplitMember, extract_split

CUT = 4_000  # bytes per part
CONTENT = {
    "before.txt": b"not wanted " * 500,
    "models/large.bin": random.Random(0).randbytes(9_000),  # over three parts
    "models/small.txt": "Größe".encode(),
    "models/last.txt": b"and so on " * 9,
}
WANTED = ("large.bin", "small.txt", "last.txt")


@pytest.fixture
def parts(tmp_path: Path) -> list[tuple[Path, str]]:
    """A zip cut into parts, each in a package archive of its own; the first is left out."""
    whole = tmp_path / "whole.zip"
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in CONTENT.items():
            file.writestr(name, content)
    pieces = [whole.read_bytes()[at : at + CUT] for at in range(0, whole.stat().st_size, CUT)]
    made = []
    for number, piece in enumerate(pieces):
        archive = tmp_path / f"part{number}.whl"
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("package/__init__.py", "")
            file.writestr(f"package/cut.zip.{number}", piece)
        made.append((archive, f"cut.zip.{number}"))
    return made


@pytest.fixture
def wanted(parts: list[tuple[Path, str]], tmp_path: Path) -> list[SplitMember]:
    with zipfile.ZipFile(tmp_path / "whole.zip") as file:
        return [
            SplitMember(
                name,
                file.getinfo(f"models/{name}").header_offset,
                hashlib.sha256(CONTENT[f"models/{name}"]).hexdigest(),
            )
            for name in WANTED
        ]


def test_members_are_inflated_across_parts(parts, wanted, tmp_path):
    extract_split(parts, 0, wanted, tmp_path)
    for name in WANTED:
        assert (tmp_path / name).read_bytes() == CONTENT[f"models/{name}"]


def test_later_parts_are_enough_for_later_members(parts, wanted, tmp_path):
    first = wanted[1].offset // CUT
    assert first > 0
    extract_split(parts[first:], first * CUT, wanted[1:], tmp_path)
    assert (tmp_path / "last.txt").read_bytes() == CONTENT["models/last.txt"]


def test_wrong_content_offset_or_end_is_an_error(parts, wanted, tmp_path):
    large = wanted[0]
    with pytest.raises(AssetError, match=r"large\.bin has sha256"):
        extract_split(parts, 0, [dataclasses.replace(large, sha256="0" * 64)], tmp_path)
    for wrong in (dataclasses.replace(large, offset=large.offset + 1), wanted[1]):
        with pytest.raises(AssetError, match="begins at offset"):
            extract_split(parts, 0, [dataclasses.replace(wrong, name="large.bin")], tmp_path)
    with pytest.raises(AssetError, match="beyond the last"):
        extract_split(parts[:2], 0, [large], tmp_path)
