"""A stand-in for the Hugging Face Hub on the loopback interface: the part of its interface that the client uses."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" * 6 + "0001"


@dataclass
class Endpoint:
    """Repositories by id (directories of files), and what was asked for.

    broken: an id -> the status and the error code that the Hub answers; `broken_files`: only where files are asked for
    names: files that repositories say they have and have not
    cut: file name -> bytes after which a connection that sends it is closed, once
    requests: (method, path, Range header) of each request
    """

    url: str = ""
    repos: dict[str, Path] = field(default_factory=dict)
    revisions: set[str] = field(default_factory=lambda: {"main", COMMIT})
    broken: dict[str, tuple[int, str]] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    broken_files: dict[str, tuple[int, str]] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)

    def fetched(self, repo: str) -> set[str]:
        """Names of the files of `repo` of which content was asked for."""
        start = f"/{repo}/resolve/"
        paths = (p.removeprefix(start) for method, p, _ in self.requests if method == "GET" and p.startswith(start))
        return {p.split("/", 1)[1] for p in paths}


@contextmanager
def hub_endpoint() -> Iterator[Endpoint]:
    """Serve until the end of the `with` block."""
    endpoint = Endpoint()

    class Handler(_Handler):
        hub = endpoint

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    endpoint.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Endpoint
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        is_api = path.startswith("/api/models/")
        words = path.removeprefix("/api/models").split("/")
        repo = "/".join(words[1:3])
        if repo in self.hub.broken:
            return self._error(*self.hub.broken[repo])
        if repo not in self.hub.repos:
            return self._error(401, "RepoNotFound")  # the Hub does not tell a private repository from none
        kind, revision = (words[3], words[4]) if len(words) > 4 else ("revision", "main")
        if revision not in self.hub.revisions:
            return self._error(404, "RevisionNotFound")
        files = {p.relative_to(self.hub.repos[repo]).as_posix(): p for p in self.hub.repos[repo].rglob("*.*")}
        files = {name: p for name, p in files.items() if p.is_file()}
        if is_api and kind == "revision":
            siblings = [{"rfilename": name} for name in (*files, *self.hub.names)]
            return self._json({"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings})
        if is_api and kind == "tree":
            found = [(name, p.stat().st_size, _etag(p)) for name, p in files.items()]
            found += [(name, 1, "0" * 40) for name in self.hub.names]
            return self._json([{"type": "file", "path": name, "size": n, "oid": tag} for name, n, tag in found])
        if repo in self.hub.broken_files:
            return self._error(*self.hub.broken_files[repo])
        name = "/".join(words[5:])
        if name not in files:
            return self._error(404, "EntryNotFound")
        return self._file(files[name])

    def _file(self, path: Path) -> None:
        data = path.read_bytes()
        start = 0
        wanted = self.headers.get("Range")
        if wanted:
            start = int(wanted.removeprefix("bytes=").split("-")[0])
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("ETag", f'"{_etag(path)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        stop = self.hub.cut.pop(path.name, None)
        self.wfile.write(data[start:stop])
        if stop is not None:
            self.wfile.flush()
            self.close_connection = True

    def _json(self, value: object) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _error(self, status: int, code: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def _etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()
