"""The model hub: what a repository holds and at which revision, and in words why it cannot be read.

Nothing here downloads weights or writes to the hub. A token is taken from HF_TOKEN, files that were
fetched lie in HF_HOME.
"""

import functools
import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lib.errors import StudyError

ENDPOINT = "https://huggingface.co"
SECONDS = 5  # to wait for an answer to the question whether anybody is there
# The hub's own account: it offers safetensors made of pickled weights as pull requests.
CONVERTER = "SFconvertbot"
WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"  # of weights in several files


class HubError(StudyError):
    """The hub does not give what was asked for: `fault`, and `remedy` where there is one."""

    def __init__(self, fault: str, remedy: str = "") -> None:
        super().__init__(f"{fault}: {remedy}" if remedy else fault)
        self.fault, self.remedy = fault, remedy


class UnreachableError(HubError):
    """The hub could not be asked."""


class PickledError(HubError):
    """A repository without safetensors."""


@dataclass(frozen=True)
class Repository:
    """What the hub says of a repository at a revision: its commit, its files with their sizes in
    bytes, and whether its files are given only to who has accepted its terms."""

    name: str
    commit: str
    files: dict[str, int]
    gated: bool = False

    @property
    def weights(self) -> list[str]:
        """The safetensors that a model is loaded from; empty where there are none."""
        if WEIGHTS in self.files:
            return [WEIGHTS]
        return sorted(n for n in self.files if n.startswith("model-") and n.endswith(WEIGHTS[5:]))


def offline() -> bool:
    """Whether nobody shall be asked (STUDY_OFFLINE, HF_HUB_OFFLINE)."""
    return "1" in (os.environ.get("STUDY_OFFLINE"), os.environ.get("HF_HUB_OFFLINE"))


@functools.cache
def reachable() -> bool:
    """Whether the hub answers within a few seconds, asked once."""
    address = os.environ.get("HF_ENDPOINT", ENDPOINT)
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), None, SECONDS):
            return True
    except urllib.error.HTTPError:  # an answer
        return True
    except (OSError, ValueError):
        return False


def repository(name: str, revision: str = "main", kind: str = "model") -> Repository:
    """What a model or a dataset repository holds. Raises HubError if it does not exist,
    UnreachableError where nobody can be asked."""
    if offline():
        raise UnreachableError(f"could not ask the hub about {name}")
    from huggingface_hub import HfApi

    try:
        found = HfApi().repo_info(name, revision=revision, repo_type=kind, files_metadata=True)
    except Exception as error:  # the library's kinds and those of what it sends with
        raise explained(error, name) from error
    sizes = {file.rfilename: file.size or 0 for file in found.siblings or ()}
    return Repository(name, found.sha or "", sizes, bool(found.gated))


def check_access(name: str) -> None:
    """HubError unless the files of a model repository are given to this user's token."""
    from huggingface_hub import HfApi

    try:
        HfApi().auth_check(name)
    except Exception as error:
        raise explained(error, name) from error


def with_weights(name: str, revision: str = "main") -> tuple[str, Repository]:
    """The revision of a model repository from which its safetensors are read, with what it holds:
    as asked, else the pull request in which the hub's own converter offers them.

    Raises PickledError if there is neither. A conversion service is never asked: it would be told
    the repository's name and the user's token.
    """
    asked = repository(name, revision)
    if asked.weights:
        return revision, asked
    for reference in _converted(name):
        offered = repository(name, reference)
        if offered.weights:
            return reference, offered
    held = ", ".join(sorted(file for file in asked.files if file.endswith(".bin"))[:1])
    raise PickledError(
        f"{name} holds no safetensors at {revision}{f', only {held}' if held else ''}, and "
        "the hub's converter has not offered any"
    )


def _converted(name: str) -> Iterator[str]:
    """The converter's pull requests, newest first, as revisions."""
    from huggingface_hub import HfApi

    try:
        found = list(HfApi().get_repo_discussions(name, discussion_type="pull_request"))
    except Exception as error:
        raise explained(error, name) from error
    own = [one for one in found if one.author == CONVERTER and one.status in ("open", "merged")]
    yield from (one.git_reference for one in sorted(own, key=lambda one: -one.num))


def kept_weights(name: str, revision: str = "main") -> tuple[str, str] | None:
    """The revision of which HF_HOME holds a repository's safetensors in full, as asked or else a
    pull request, and its commit; None for none."""
    from huggingface_hub import constants, try_to_load_from_cache

    folder = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}" / "refs"
    offered = (str(path.relative_to(folder)) for path in sorted(folder.glob("refs/pr/*")))

    def has(file: str, revision: str) -> Path | None:
        found = try_to_load_from_cache(name, file, revision=revision)
        return Path(found) if isinstance(found, str) else None

    for candidate in (revision, *offered):
        index = has(INDEX, candidate)
        parts = json.loads(index.read_text("utf-8"))["weight_map"].values() if index else ()
        found = [has(file, candidate) for file in set(parts) or (WEIGHTS,)]
        if all(found):
            return candidate, found[0].parent.name
    return None


def explained(error: BaseException, name: str) -> HubError:
    """What a library says of a repository, in words with a remedy."""
    from huggingface_hub import errors

    if isinstance(error, HubError):
        return error
    chain = list(_causes(error))
    page = f"{os.environ.get('HF_ENDPOINT', ENDPOINT).rstrip('/')}/{name}"

    def is_any(*kinds: type[BaseException]) -> bool:
        return any(isinstance(one, kinds) for one in chain)

    if is_any(errors.GatedRepoError):
        return HubError(
            f"{name} is gated",
            f"accept its terms at {page}, then set HF_TOKEN to a token of that account (its "
            "Settings, Access Tokens)",
        )
    if is_any(errors.RevisionNotFoundError):
        return HubError(f"{name} has no such revision")
    if is_any(errors.RepositoryNotFoundError):
        return HubError(f"{name} is not on the hub, or it is private and HF_TOKEN is not set")
    if is_any(errors.HfHubHTTPError):
        return HubError(f"{name}: {_first(error)}")
    if is_any(errors.OfflineModeIsEnabled, ConnectionError, errors.LocalEntryNotFoundError) or any(
        type(one).__name__ in ("ConnectError", "ConnectTimeout", "ReadTimeout") for one in chain
    ):
        return UnreachableError(f"could not ask the hub about {name} ({_first(error)})")
    return HubError(f"{name}: {_first(error)}")


def _causes(error: BaseException | None) -> Iterable[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _first(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")
