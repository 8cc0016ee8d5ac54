"""Loopback servers: a web server that can misbehave, and as much of the Hub as its client asks."""

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

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
    """One repository of models or of data sets. The test says what it gets wrong."""

    def __init__(self, kind: str, repository: str, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _HubHandler)
        self.kind, self.repository, self.folder = kind, repository, folder
        self.api = f"/api/{kind}/{repository}"
        prefix = "" if kind == "models" else f"/{kind}"
        self.files_at = re.compile(f"{prefix}/{repository}/resolve/(main|{COMMIT})/")
        self.exists = True
        self.private = False
        """Whether it is there for holders of the token alone."""
        self.token: str | None = None
        """The one that may read, and write. Every other one is unknown."""
        self.may_write = True
        self.requests: list[str] = []
        """METHOD PATH of each."""
        self.downloads: list[str] = []
        """The name of each file that was sent, whole or in part."""
        self.ranges: list[str | None] = []
        """The Range header of each of them."""
        self.statuses: list[int] = []
        """The next downloads of files end with these."""
        self.cuts: list[int] = []
        """The next files end after so many bytes."""
        self.announced: dict[str, int] = {}
        """Sizes that the headers of files claim in place of the true ones."""
        self.commits: list[dict[str, bytes]] = []
        """The files of each commit that was written."""
        self.summaries: list[str] = []
        self.branches: list[str] = []
        self.objects: dict[str, bytes] = {}
        """Large files by their SHA-256."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def files(self) -> dict[str, Path]:
        found = (path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path for path in sorted(found)}


class _HubHandler(BaseHTTPRequestHandler):
    server: HubServer

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._read()

    def do_GET(self) -> None:
        self._read()

    def do_POST(self) -> None:
        self._write()

    def do_PUT(self) -> None:
        self._write()

    def _refuses(self, *, writes: bool) -> bool:
        """Notes the request, and answers it where the token is wrong."""
        hub = self.server
        hub.requests.append(f"{self.command} {self.path.partition('?')[0]}")
        sent = self.headers.get("Authorization")
        if sent is not None and sent != f"Bearer {hub.token}":
            why = "Invalid credentials in Authorization header"
            self._send(401, {"error": why}, {"X-Error-Message": why})
        elif sent is None and (writes or hub.private):
            self._send(401, {}, {"X-Error-Code": "RepoNotFound"} if hub.private else {})
        elif writes and not hub.may_write:
            self._send(403, {}, {"X-Error-Message": "you have no write token"})
        else:
            return False
        return True

    def _read(self) -> None:
        hub, path = self.server, self.path.partition("?")[0]
        if self._refuses(writes=False):
            return
        files = hub.files()
        rest = path.removeprefix(hub.api).strip("/")
        if (place := hub.files_at.match(path)) and hub.exists:
            self._file(path[place.end() :], files)
        elif not path.startswith(hub.api) or not hub.exists:
            self._send(404, {}, {"X-Error-Code": "RepoNotFound"})
        elif rest.startswith("tree/"):
            tree = [
                {
                    "type": "file",
                    "path": name,
                    "size": file.stat().st_size,
                    "oid": "0" * 40,
                }
                for name, file in files.items()
            ]
            self._send(200, tree)
        elif rest in ("", "revision/main", "revision/v1", f"revision/{COMMIT}"):
            siblings = [{"rfilename": name} for name in files]
            self._send(200, {"id": hub.repository, "sha": COMMIT, "siblings": siblings})
        else:
            self._send(404, {}, {"X-Error-Code": "RevisionNotFound"})

    def _file(self, name: str, files: dict[str, Path]) -> None:
        hub = self.server
        if name not in files:
            self._send(404, {}, {"X-Error-Code": "EntryNotFound"})
            return
        content, start = files[name].read_bytes(), 0
        headers = {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if name in hub.announced:
            headers["X-Linked-Size"] = str(hub.announced[name])
        if self.command == "GET":
            if hub.statuses:
                self._send(hub.statuses.pop(0), {}, {"Retry-After": "0"})
                return
            wanted = self.headers.get("Range")
            hub.downloads.append(name)
            hub.ranges.append(wanted)
            start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        is_cut = self.command == "GET" and hub.cuts and len(content) > hub.cuts[0]
        end = hub.cuts.pop(0) if is_cut else len(content)
        self._send(206 if start else 200, content[start:], headers, end - start)

    def _write(self) -> None:
        hub, path = self.server, self.path.partition("?")[0]
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if path.startswith("/objects/"):  # a storage service, which knows no tokens
            hub.requests.append(f"{self.command} {path}")
            hub.objects[path.removeprefix("/objects/")] = body
            self._send(200, {})
            return
        if self._refuses(writes=True):
            return
        rest = path.removeprefix(hub.api).strip("/").partition("/")[0]
        if path == "/api/validate-yaml":
            self._send(200, {"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif not hub.exists:
            self._send(404, {}, {"X-Error-Code": "RepoNotFound"})
        elif path == f"/{hub.repository}.git/info/lfs/objects/batch":
            self._batch(json.loads(body))
        elif path.startswith(hub.api) and rest == "branch":
            hub.branches.append(path.rpartition("/")[2])
            self._send(201, {})
        elif path.startswith(hub.api) and rest == "preupload":
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            self._send(200, {"files": modes})
        elif path.startswith(hub.api) and rest == "commit":
            self._commit([json.loads(line) for line in body.splitlines()])
        else:
            self._send(404, {}, {"X-Error-Code": "RepoNotFound"})

    def _create(self, wanted: dict[str, str]) -> None:
        hub = self.server
        if f"{wanted['organization']}/{wanted['name']}" != hub.repository:
            self._send(404, {"error": "no such namespace"})
            return
        existed, hub.exists = hub.exists, True
        if not existed:
            hub.private = wanted.get("visibility") == "private"
        self._send(409 if existed else 200, {"url": f"{hub.url}/{hub.repository}"})

    def _batch(self, wanted: dict[str, Any]) -> None:
        """Where large files go: nowhere if they are there already."""
        hub = self.server
        objects = [
            {"oid": item["oid"], "size": item["size"]}
            | (
                {}
                if item["oid"] in hub.objects
                else {"actions": {"upload": {"href": f"{hub.url}/objects/{item['oid']}"}}}
            )
            for item in wanted["objects"]
        ]
        self._send(200, {"transfer": "basic", "objects": objects})

    def _commit(self, lines: list[dict[str, Any]]) -> None:
        hub = self.server
        header, *operations = lines
        files = {}
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                content = base64.b64decode(value["content"])
            else:
                assert operation["key"] == "lfsFile"
                content = hub.objects.get(value["oid"], b"")
                if hashlib.sha256(content).hexdigest() != value["oid"]:
                    self._send(400, {"error": f"{value['path']} was not uploaded"})
                    return
            files[value["path"]] = content
        for name, content in files.items():
            (hub.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (hub.folder / name).write_bytes(content)
        hub.commits.append(files)
        hub.summaries.append(header["value"]["summary"])
        self._send(
            200, {"commitUrl": f"{hub.url}/{hub.repository}/commit/{COMMIT}", "commitOid": COMMIT}
        )

    def _send(
        self,
        status: int,
        content: object,
        headers: dict[str, str] | None = None,
        end: int | None = None,
    ) -> None:
        """A response, with `end` bytes of what its header promises."""
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[:end])


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
