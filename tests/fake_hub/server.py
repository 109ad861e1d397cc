"""A model hub on the loopback interface: as much of its interface as the libraries ask for."""

import hashlib
import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_invented"  # of an account that has accepted every term
API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(.*))?")
FILE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/(refs/[^/]+/[^/]+|[^/]+)/(.+)")


@dataclass
class Repository:
    """Files by name at `main` and at further revisions ("refs/pr/3"); `pulls` are the authors of
    pull requests by number, `commit` is that of `main` ("": a made-up one)."""

    files: Mapping[str, bytes]
    more: Mapping[str, Mapping[str, bytes]] = field(default_factory=dict)
    pulls: Mapping[int, str] = field(default_factory=dict)
    gated: bool = False
    commit: str = ""

    def at(self, name: str, revision: str) -> tuple[str, Mapping[str, bytes]] | None:
        """Commit and files at a revision or commit; None if there is no such revision."""
        for known, files in {"main": self.files, **self.more}.items():
            made_up = hashlib.sha1(f"{name}@{known}".encode()).hexdigest()
            commit = (known == "main" and self.commit) or made_up
            if revision in (known, commit):
                return commit, files
        return None


class FakeHub:
    """Serves repositories while the context is open. `asked`: every request, as "GET /path"."""

    def __init__(self, models: Mapping[str, Repository], data: Mapping[str, Repository]) -> None:
        self.repositories = {"models": dict(models), "datasets": dict(data)}
        self.asked: list[str] = []

    def __enter__(self) -> "FakeHub":
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._answer()

    def _answer(self) -> None:
        address = urlsplit(self.path)
        path, query = unquote(address.path), parse_qs(address.query)
        self.hub.asked.append(f"{self.command} {path}")
        if found := API.fullmatch(path):
            self._api(*found.groups(), query)
        elif found := FILE.fullmatch(path):
            kind, name, revision, file = found.groups()
            self._file("datasets" if kind else "models", name, revision, file)
        elif path == "/":
            self._send(200, b"")
        else:
            self._refuse(404, "")

    def _repository(self, kind: str, name: str) -> Repository | None:
        found = self.hub.repositories[kind].get(name)
        if found is None:
            self._refuse(404, "RepoNotFound")
        return found

    def _is_refused(self, repository: Repository) -> bool:
        refused = repository.gated and self.headers.get("Authorization") != f"Bearer {TOKEN}"
        if refused:
            self._refuse(403, "GatedRepo")
        return refused

    def _api(self, kind: str, name: str, rest: str | None, query: dict[str, list[str]]) -> None:
        repository = self._repository(kind, name)
        if repository is None:
            return
        what, _, below = (rest or "revision/main").partition("/")
        if what == "auth-check":
            if not self._is_refused(repository):
                self._json({})
            return
        if what == "discussions":
            self._json(_discussions(name, repository))
            return
        if what == "revision":
            found, path = repository.at(name, below), ""
        else:  # tree and paths-info: a revision, then a folder
            parts = re.fullmatch(r"(refs/[^/]+/[^/]+|[^/]+)/?(.*)", below)
            found, path = repository.at(name, parts[1]), parts[2]
        if found is None:
            self._refuse(404, "RevisionNotFound")
            return
        commit, files = found
        if what == "revision":
            self._json(
                {
                    "_id": "0", "id": name, "sha": commit, "private": False, "disabled": False,
                    "gated": "manual" if repository.gated else False, "tags": [], "downloads": 0,
                    "siblings": [{"rfilename": f, "size": len(c)} for f, c in files.items()],
                }
            )  # fmt: skip
        elif what == "tree":
            recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
            entries = list(_tree(files, path, recursive))
            if entries or not path:
                self._json(entries)
            else:
                self._refuse(404, "EntryNotFound")
        elif what == "paths-info":
            sent = self._body.decode()
            is_json = sent.lstrip().startswith("{")
            paths = json.loads(sent)["paths"] if is_json else parse_qs(sent).get("paths", [])
            every = {entry["path"]: entry for entry in _tree(files, "", True)}
            self._json([every[one] for one in paths if one in every])
        else:
            self._refuse(404, "")

    def _file(self, kind: str, name: str, revision: str, file: str) -> None:
        repository = self._repository(kind, name)
        if repository is None or self._is_refused(repository):
            return
        found = repository.at(name, revision)
        if found is None:
            self._refuse(404, "RevisionNotFound")
            return
        commit, files = found
        if file not in files:
            self._refuse(404, "EntryNotFound", {"X-Repo-Commit": commit})
            return
        content = files[file]
        told = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked:
            begin, end = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
            told["Content-Range"] = f"bytes {begin}-{end}/{len(content)}"
            self._send(206, content[begin : end + 1], told)
        else:
            self._send(200, content, told)

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str, headers: Mapping[str, str] | None = None) -> None:
        self._send(
            status, b"{}", {"X-Error-Code": code, "X-Error-Message": code, **(headers or {})}
        )

    def _send(self, status: int, content: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        told = {"Content-Length": str(len(content)), "Accept-Ranges": "bytes", **(headers or {})}
        for name, value in told.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _tree(files: Mapping[str, bytes], path: str, recursive: bool) -> list[dict[str, object]]:
    """The entries below a folder, as the hub lists them."""
    prefix = f"{path}/" if path else ""
    entries: dict[str, dict[str, object]] = {}
    for name, content in files.items():
        if not name.startswith(prefix):
            continue
        parts = name[len(prefix) :].split("/")
        for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
            folder = prefix + "/".join(parts[:depth])
            entries.setdefault(folder, {"type": "directory", "oid": "0", "size": 0, "path": folder})
        if recursive or len(parts) == 1:
            oid = hashlib.sha1(content).hexdigest()
            entries[name] = {"type": "file", "oid": oid, "size": len(content), "path": name}
    return list(entries.values())


def _discussions(name: str, repository: Repository) -> dict[str, object]:
    found = [
        {
            "num": number,
            "author": {"name": author},
            "isPullRequest": True,
            "status": "open",
            "title": "Adding `safetensors` variant of this model",
            "repo": {"name": name, "type": "model"},
            "createdAt": "2023-05-01T00:00:00.000Z",
        }
        for number, author in repository.pulls.items()
    ]
    return {"discussions": found, "count": len(found), "start": 0}
