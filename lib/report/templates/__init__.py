"""The pages' markup: Jinja templates, the style, the script of tables; every value is escaped."""

import base64
import functools
import hashlib
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

FOLDER = Path(__file__).parent
FILES = "img-src 'self' file: data:; "  # pictures beside a page, or inside it


@functools.cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader((FOLDER / "pieces", FOLDER)), autoescape=True,
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip


def fill(name: str, **values: object) -> Markup:
    """The template `name`.html.j2 with its values."""
    return Markup(_environment().get_template(f"{name}.html.j2").render(values).strip())


@functools.cache
def text(name: str) -> str:
    """A file of this folder: the style, or the script."""
    return (FOLDER / name).read_text(encoding="utf-8")


def policy(pictures: str = FILES) -> str:
    """What a page may do, as a Content-Security-Policy: no network, and no script but our own."""
    ours = base64.b64encode(hashlib.sha256(text("tables.js").encode("utf-8")).digest()).decode()
    return (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{ours}'; {pictures}"
        "base-uri 'none'; form-action 'none'"
    )
