"""`python -m lib edit`: edit a model's facts from a shell, keep the edits, print a table."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lib.errors import StudyError, UsageError
from lib.runs.settings import assigned

DESCRIPTION = """Edits the facts of a file in a model, keeps the edits (not the model) in OUT, and
prints how every prompt is answered before and after."""


def parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    build = argparse.ArgumentParser(
        prog="python -m lib edit", description=DESCRIPTION, allow_abbrev=False
    )
    add = build.add_argument
    add(
        "--model", required=True, help="a folder, a name of the catalogue, or owner/name on the hub"
    )
    add("--editor", required=True, metavar="NAME", help="MEMIT, ROME, FT-L, LoRA, GRACE, MELO, ...")
    add("--facts", required=True, type=Path, metavar="FILE", help="JSON Lines: prompt, target, ...")
    add("--out", type=Path, metavar="DIR", help="where the edits are kept (lib.open reads them)")
    add("--checkpoint", type=Path, metavar="DIR", help="a stock checkpoint of the edited model")
    add("--dtype", default="float32", help="of the weights (float32)")
    add("--device", default="cpu", help="cpu, cuda, ... (cpu)")
    add("--prefix", help="what starts every prompt, where the model was trained with a mark there")
    add("--batch-size", type=int, default=10, metavar="N", help="facts edited together (10)")
    add("--text", metavar="NAME", help="corpus of the key statistics: new_wiki (default), invented")
    add("--lessons", metavar="NAME", help="dataset that is learned from before the first edit")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the editor")
    return build


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0 all fine, 1 something failed, 2 wrong usage."""
    options = parser().parse_args(arguments)
    try:
        return _run(options)
    except UsageError as error:
        print(f"lib edit: {error}", file=sys.stderr)
        return 2
    except StudyError as error:
        print(f"lib edit: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; nothing was kept", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace) -> int:
    settings = assigned("--set", options.set)
    if options.out is None and options.checkpoint is None:
        raise UsageError("nothing would be kept: give --out, --checkpoint, or both")
    from lib.api.editing import edit
    from lib.api.facts import edits
    from lib.api.models import load
    from lib.api.scores import summary

    facts = edits(options.facts)
    model = load(options.model, dtype=options.dtype, device=options.device, prefix=options.prefix)
    with edit(
        model, options.editor, facts, batch_size=options.batch_size, text=options.text,
        lessons=options.lessons, **settings,
    ) as edited:  # fmt: skip
        print(edited.origin, file=sys.stderr)
        scores = edited.score()
        shown = scores[["kind", "prompt", "target", "before", "after"]]
        print(shown.to_string(index=False, max_colwidth=48))
        print()
        print(summary(scores).round(2).to_string(index=False))
        if options.out is not None:
            print(f"\nedits kept in {edited.save(options.out)}")
        if options.checkpoint is not None:
            print(f"\ncheckpoint written to {edited.save_pretrained(options.checkpoint)}")
    return 0
