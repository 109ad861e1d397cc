"""The API reference: a page for every module, made by pdoc of signatures and docstrings.

pdoc is needed for this alone (the extra `docs`); the pages need no network and no script.
"""

import importlib
import os
import pkgutil
import re
import shutil
import tempfile
import warnings
from pathlib import Path

from lib.errors import UsageError
from lib.runs.settings import ROOT

PACKAGE = __name__.split(".")[0]
APART = ("__main__",)  # does something when it is imported
STYLE = re.compile(r"<style>(.*?)</style>", re.DOTALL)


def write(folder: Path) -> Path:
    """Write the reference into `folder`, in place of what is there; its first page. UsageError
    without pdoc."""
    try:
        import pdoc.render
    except ImportError:
        raise UsageError(
            "the API reference is made by pdoc, which is not installed: pip install pdoc"
        ) from None
    found, missing = modules()
    rooms = sorted({".".join(name.split(".")[:2]) for name in found})
    pdoc.render.configure(docformat="markdown", show_source=False, search=False)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".api-") as place:
        made = Path(place) / folder.name
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # annotations of others that pdoc cannot resolve
            pdoc.pdoc(*rooms, *(f"!{name}" for name in missing), output_directory=made)
        _share_style(made)
        shutil.rmtree(folder, ignore_errors=True)
        made.replace(folder)
    return folder / f"{PACKAGE}.html"


def _share_style(folder: Path) -> None:
    """Put the style that pdoc writes into every page into one file beside them, and leave out where
    the project lies on this machine."""
    sheet = folder / "style.css"
    for page in sorted(folder.rglob("*.html")):
        text = page.read_text("utf-8")
        if styles := STYLE.findall(text):
            sheet.write_text("\n".join(styles), "utf-8")
            link = f'<link rel="stylesheet" href="{os.path.relpath(sheet, page.parent)}">'
            text = STYLE.sub("", text.replace("</head>", f"{link}</head>", 1))
        # Constants that are paths are told as the project's, whatever machine made the page.
        page.write_text(text.replace(f"{ROOT}/", "").replace(str(ROOT), "."), "utf-8")


def modules() -> tuple[list[str], list[str]]:
    """All modules of the library by name, the package first; then those that need what is not
    installed here."""
    package = importlib.import_module(PACKAGE)
    for name in package.__all__:  # imported when they are asked for, which pdoc does not do
        setattr(package, name, getattr(package, name))
    found, missing = [PACKAGE], []
    for module in pkgutil.walk_packages(package.__path__, f"{PACKAGE}."):
        if module.name.rpartition(".")[2] in APART:
            missing.append(module.name)
            continue
        try:
            importlib.import_module(module.name)
            found.append(module.name)
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] == PACKAGE:
                raise
            missing.append(module.name)
    return found, missing
