"""What these tests make once lies in a cache of their own."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="package", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STUDY_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
