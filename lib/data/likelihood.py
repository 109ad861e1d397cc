"""How likely a backbone finds sentences before any edit: one teacher-forced pass, cached.

As with `lib.data.knowledge`, every piece is stored when it is done, so a killed pass goes on where
it stopped and a second one costs nothing.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from lib.data.records import Edit, content_hash
from lib.storage import archives

if TYPE_CHECKING:
    from lib.backbones import Backbone
from lib.data.embedded.known import Likelihoods

_VERSION = 1  # of the pass; a change here reads everything again
_ROWS = 8  # in one pass


def likelihoods(backbone: "Backbone", edits: Sequence[Edit], *, cap: int) -> Likelihoods:
    """Read the first `cap` of `edits`: how likely each target is behind its prompt."""
    asked = edits[:cap]
    keys = {e.identity: content_hash([backbone.prefix, e.prompt, e.target])[:32] for e in asked}
    dtype = str(backbone.dtype).removeprefix("torch.")
    name = f"{backbone.content[:24]}-{dtype}-v{_VERSION}.jsonl"
    path = archives.cache_dir() / "likelihood" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.parent / f".{name}.lock"):  # another process may be reading the same
        stored = _stored(path)
        missing = [edit for edit in asked if keys[edit.identity] not in stored]
        missing.sort(key=lambda edit: (len(edit.prompt) + len(edit.target), edit.identity))
        for start in range(0, len(missing), _ROWS):
            piece = missing[start : start + _ROWS]
            read = zip((keys[e.identity] for e in piece), _read(backbone, piece), strict=True)
            new = dict(read)
            stored.update(new)
            with open(path, "a", encoding="utf-8") as file:
                # On a fresh line, even if the last process died inside one.
                rows = (json.dumps({"key": key, "nll": nll}) for key, nll in new.items())
                file.write("\n" + "\n".join(rows) + "\n")
    return Likelihoods({edit.identity: stored[keys[edit.identity]] for edit in asked})


def _stored(path: Path) -> dict[str, float]:
    """Values in the file; an empty or torn line is passed over."""
    found = {}
    for line in path.read_text("utf-8", errors="replace").split("\n") if path.is_file() else ():
        try:
            row = json.loads(line)
            found[row["key"]] = float(row["nll"])
        except (ValueError, TypeError, KeyError):
            continue
    return found


def _read(backbone: "Backbone", edits: Sequence[Edit]) -> list[float]:
    from lib.editors.prefix import FrozenPrefix
    from lib.teacher_forcing import prepare_whole, score_whole

    prefix = FrozenPrefix(backbone, 0)
    prompts, targets = [edit.prompt for edit in edits], [edit.target for edit in edits]
    return score_whole(backbone, prefix, prepare_whole(backbone, prefix, prompts, targets)).nll
