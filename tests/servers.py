"""Loopback servers: a web server that can misbehave, and as much of the Hub as its client asks."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TypeVar

COMMIT = "1234567890abcdef1234567890abcdef12345678"


class FileServer(ThreadingHTTPServer):
    """Serves one content at every address; the test says what it gets wrong."""

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _FileHandler)
        self.content = content
        self.requests: list[str | None] = []
        """The Range header of each request."""
        self.cuts: list[int] = []
        """The next responses end after N bytes."""
        self.stalls_seconds = 0.0
        """A response waits so long after its first bytes."""
        self.honours_ranges = True
        self.has_begun = threading.Event()
        """Set when a response has sent its first bytes."""
        self.waits_for: threading.Event | None = None
        """A response waits for it after its first bytes, but no longer than until a second request
        comes."""

    def url(self, path: str = "/data/text.json.gz") -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"


class _FileHandler(BaseHTTPRequestHandler):
    server: FileServer

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.requests.append(wanted)
        gate = self.server.waits_for
        if gate is not None and len(self.server.requests) > 1:
            gate.set()
        if self.path == "/missing.json":
            self.send_error(404)
            return
        if self.path == "/moved.json":
            self.send_response(302)
            self.send_header("Location", "/data/text.json.gz")
            self.end_headers()
            return
        content, start = self.server.content, 0
        if wanted and self.server.honours_ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.send_error(416)
                return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = start + self.server.cuts.pop(0) if self.server.cuts else len(content)
        if self.server.stalls_seconds:
            self.wfile.write(content[start : start + 10])
            self.wfile.flush()
            time.sleep(self.server.stalls_seconds)
            return
        if gate is not None:
            self.wfile.write(content[start : start + 10])
            self.server.has_begun.set()
            gate.wait(60)
            start += 10
        self.wfile.write(content[start:end])


class HubServer(ThreadingHTTPServer):
    """One repository of models or of data sets, at one commit."""

    def __init__(self, kind: str, repository: str, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _HubHandler)
        self.api = f"/api/{kind}/{repository}"
        prefix = "" if kind == "models" else f"/{kind}"
        self.files_at = f"{prefix}/{repository}/resolve/{COMMIT}/"
        self.repository = repository
        self.folder = folder
        self.downloads: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _HubHandler(BaseHTTPRequestHandler):
    server: HubServer

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = self.path.split("?")[0]
        folder = self.server.folder
        files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
        if path.startswith(self.server.api):
            rest = path.removeprefix(self.server.api).strip("/")
            if rest.startswith("tree/"):
                tree = [
                    {"type": "file", "path": name, "size": file.stat().st_size, "oid": "0" * 40}
                    for name, file in sorted(files.items())
                ]
                self._send(200, json.dumps(tree).encode(), {}, body)
            elif rest in ("", "revision/main", "revision/v1", f"revision/{COMMIT}"):
                siblings = [{"rfilename": name} for name in sorted(files)]
                info = {"id": self.server.repository, "sha": COMMIT, "siblings": siblings}
                self._send(200, json.dumps(info).encode(), {}, body)
            else:
                self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body)
        elif path.startswith(self.server.files_at):
            name = path.removeprefix(self.server.files_at)
            if name not in files:
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, body)
                return
            if body:
                self.server.downloads.append(name)
            headers = {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT}
            self._send(200, files[name].read_bytes(), headers, body)
        else:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)

    def _send(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)


Server = TypeVar("Server", FileServer, HubServer)


@contextmanager
def running(server: Server) -> Iterator[Server]:
    """Serves from a thread until the end of the block."""
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
