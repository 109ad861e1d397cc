"""Target values found on the unedited backbone, kept by content: equal searches run once."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save

from lib.data.records import content_hash
from lib.editors.values import Found
from lib.storage import atomic, fingerprints


@dataclass(frozen=True)
class ValueCache:
    """A folder of values. `identity` says everything but the request that decides a value."""

    folder: Path
    identity: list[object]

    def _place(self, request: object) -> Path:
        code = fingerprints.code("lib.editors.values", "lib.editors.subjects")
        key = content_hash([self.identity, asdict(request), code, fingerprints.versions()])
        return self.folder / f"{key[:32]}.safetensors"

    def get(self, request: object) -> Found | None:
        """The stored search of one request; None if there is none."""
        place = self._place(request)
        if not place.is_file():
            return None
        with safe_open(place, "pt") as file:
            numbers = json.loads(file.metadata()["numbers"])
            return Found(file.get_tensor("value")[None], **numbers)

    def put(self, request: object, found: Found) -> None:
        """Keep the search of one request."""
        numbers = {name: value for name, value in vars(found).items() if name != "values"}
        content = save(
            {"value": found.values[0].cpu().contiguous()}, {"numbers": json.dumps(numbers)}
        )
        atomic.write_bytes(self._place(request), content)


def part_of(found: Found, number: int) -> Found:
    """The search of one request out of a batch's, with its share of the seconds."""
    count = len(found.values)
    return Found(
        found.values[number : number + 1],
        *([column[number]] for column in (found.first, found.last, found.updates)),
        found.seconds / count,
    )


def together(parts: list[Found], device: torch.device) -> Found:
    """Searches of single requests as one."""
    return Found(
        torch.cat([part.values.to(device) for part in parts]),
        [part.first[0] for part in parts],
        [part.last[0] for part in parts],
        [part.updates[0] for part in parts],
        sum(part.seconds for part in parts),
    )
