"""A copy of one finished profile's pages, tables and figures, small enough for git.

Links to the pages of a longer profile lead to its copy, a folder of its name inside this one; where
there is none yet, their text stays.

It starts at `index.html` and takes what links lead to, so no link of the copy is dead, and puts the
pictures of a page inside it, so every page can be passed on alone. Run store, executed notebooks
and PNG stay behind, and of the prompts that come from other projects' data as they are
(`record_pages.BORROWED`) only the beginning is published. `manifest.json` says what it was made of.
"""

import hashlib
import html
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from lib.errors import StoreError
from lib.report.pages.notebook import with_pictures
from lib.report.summaries import PaperSummary, read_summaries
from lib.runs.settings import ROOT, papers
from lib.storage.atomic import write_bytes

MANIFEST = "manifest.json"
_BESIDE = re.compile(r'<a href="\.\./(\w+)/([\w.-]+)">(.*?)</a>')  # `claims.Beside`
_LINK = re.compile(r'<a\b[^>]*?\shref="([^"]*)"')
_APART = re.compile(r"<a [^>]*data-beside>")  # is no part of this copy
_PNG = re.compile(r'(?:\s*·\s*)?<a\b[^>]*?\shref="[^"#]*\.png"[^>]*>.*?</a>', re.DOTALL)
_BORROWED = re.compile(r"(?<=<td class=b>)[^<]*")
_BEGINNING = 32  # characters of a borrowed prompt
_FAILURE = '<div class="failure"'
_ROOTS = r"(?<![\w./:<-])/(?:home|root|Users|tmp|var|opt|mnt|srv|private)/[^\s\"'<&]+"
_PLACES = re.compile(rf"{_ROOTS}|\b[A-Z]:\\[^\s\"'<&]+")


def make(source: Path, target: Path, chosen: Iterable[str] | None = None) -> Path:
    """Copy the finished output folder of a profile (`source`) to `target`; returns `target`.

    An earlier copy there is replaced whole. Raises `StoreError` if a report of `chosen` (None: of
    the study) is missing, failed, or of another profile, if a link leads nowhere, if a file names
    a folder of this machine, or if `target` holds anything but a copy.
    """
    source, target = Path(source), Path(target)
    summaries = _finished(source, tuple(chosen or papers()))
    if target.exists() and any(target.iterdir()) and not (target / MANIFEST).is_file():
        raise StoreError(f"{target} is no copy made by this command; empty it or choose --output")
    files = _linked(source, target)
    for path in [*source.glob("tables/*.csv"), *source.glob("*.summary.json")]:
        files[path.relative_to(source).as_posix()] = path.read_bytes()
    _check_places(files, source)
    manifest = _manifest(source.name, summaries, files)
    files[MANIFEST] = json.dumps(manifest, indent=1, ensure_ascii=False).encode() + b"\n"
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".reference-") as place:
        fresh = Path(place) / target.name
        for name, content in files.items():
            (fresh / name).parent.mkdir(parents=True, exist_ok=True)
            write_bytes(fresh / name, content)
        for other in _copies(target):
            os.replace(target / other, fresh / other)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(fresh, target)
    return target


def _finished(source: Path, papers: tuple[str, ...]) -> list[PaperSummary]:
    """The summaries of all reports; anything unfinished is an error with the way to finish it."""
    remedy = f"run ./run_all.sh --profile {source.name} to its end first"
    if not (source / "index.html").is_file():
        raise StoreError(f"{source} holds no finished output (no index.html): {remedy}")
    found = {paper.key: paper for paper in read_summaries(source)}
    for key in papers:
        paper = found.get(key)
        if paper is None or not (source / f"{key}.html").is_file():
            raise StoreError(f"{source} has no report on {key}: {remedy}")
        if paper.status != "done":
            why = f" ({paper.errors[0]})" if paper.errors else ""
            raise StoreError(f"{source}: the report on {key} is not complete{why}: {remedy}")
        if paper.profile != source.name:
            raise StoreError(
                f"{source}: the report on {key} is of the profile {paper.profile}: {remedy}"
            )
    return list(found.values())


def _copies(target: Path) -> list[str]:
    """The folders of `target` that are copies of other profiles."""
    return sorted(path.parent.name for path in target.glob(f"*/{MANIFEST}"))


def _linked(source: Path, target: Path) -> dict[str, bytes]:
    """The index and every file that links lead to from there, by relative name."""

    def beside(link: re.Match[str]) -> str:
        profile, page, text = link.groups()
        known = profile in _copies(target) and (target / profile / page).is_file()
        return f'<a href="{profile}/{page}" data-beside>{text}</a>' if known else text

    found: dict[str, bytes] = {}
    wanted = [PurePosixPath("index.html")]
    while wanted:
        name = wanted.pop()
        if str(name) in found:
            continue
        content = (source / name).read_bytes()
        if name.suffix == ".html":
            text = _BESIDE.sub(beside, _PNG.sub("", content.decode("utf-8")))
            if _FAILURE in text:
                raise StoreError(f"{source / name} shows a failed step: run it again first")
            wanted += [_target(source, name, link) for link in _links(_APART.sub("", text))]
            text = with_pictures(_BORROWED.sub(_beginning, text), (source / name).parent)
            content = text.encode("utf-8")
        found[str(name)] = content
    return found


def _beginning(prompt: re.Match[str]) -> str:
    text = html.unescape(prompt[0])
    cut = text if len(text) <= _BEGINNING else f"{text[: _BEGINNING - 1].rstrip()}…"
    return html.escape(cut)


def _links(text: str) -> list[str]:
    """The files that a page links to: no fragments, no addresses of the web."""
    named = (unquote(html.unescape(link)).partition("#")[0] for link in _LINK.findall(text))
    return [name for name in named if name and not re.match(r"[a-z]+:", name)]


def _target(source: Path, page: PurePosixPath, link: str) -> PurePosixPath:
    name = PurePosixPath(os.path.normpath(page.parent / link))
    inside = not name.is_absolute() and ".." not in name.parts and name.parts[0] != "runs"
    if not inside or not (source / name).is_file():
        raise StoreError(f"{source / page} links to {link}, which cannot be copied: run it again")
    return name


def _check_places(files: Mapping[str, bytes], source: Path) -> None:
    """Refuse a file that shows where things lie on this machine."""
    folders = {Path.home(), ROOT, Path(sys.prefix), Path(tempfile.gettempdir())}
    folders |= {source.resolve(), source.resolve().parent}
    known = [str(folder) for folder in folders if len(folder.parts) > 1]
    for name, content in files.items():
        text = content.decode("utf-8")
        place = next((folder for folder in known if f"{folder}/" in text), "")
        if not place and (match := _PLACES.search(text)):
            place = match[0]
        if place:
            raise StoreError(f"{source / name} names a folder of this machine, {place}")


def _manifest(
    profile: str, summaries: Iterable[PaperSummary], files: Mapping[str, bytes]
) -> dict[str, object]:
    made: dict[str, set[str]] = {}
    for paper in summaries:
        for name, values in paper.made.items():
            made.setdefault(name, set()).update(values)
    return {
        "profile": profile,
        "command": f"./run_all.sh --profile {profile} && "
        f"./run_all.sh --profile {profile} --reference",
        **{name: sorted(values) for name, values in sorted(made.items())},
        "files": {
            name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in sorted(files.items())
        },
    }
