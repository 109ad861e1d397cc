"""The fixture of the tests on embedded datasets; a test file asks for it by
`pytest_plugins = ("tests.data.embedded.embedded_fixtures",)`."""

import pytest

from lib.errors import AssetError
from lib.storage import archives
from tests.data.embedded.embedded_archives import forget, write_archives


@pytest.fixture
def embedded_archives(tmp_path, monkeypatch):
    """Invented archives behind `archives.fetch`, an empty cache, and no process-wide memory."""
    paths = write_archives(tmp_path / "archives")

    def fetch(name):
        if name not in paths:
            raise AssetError(f"{name} cannot be had")
        return paths[name]

    monkeypatch.setenv("STUDY_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("STUDY_DATA_SOURCE", raising=False)
    monkeypatch.setattr(archives, "fetch", fetch)
    monkeypatch.setattr(archives, "prefetch", lambda names: {name: fetch(name) for name in names})
    dropped = []
    monkeypatch.setattr(archives, "discard", dropped.append)
    forget()
    yield {"paths": paths, "dropped": dropped, "cache": tmp_path / "cache"}
    forget()
