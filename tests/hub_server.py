"""A Hugging Face Hub on loopback: the part of its file protocol that `huggingface_hub` uses to download.

`HEAD /{repo}/resolve/{revision}/{file}` answers with `ETag`, `X-Repo-Commit` and `Content-Length`; `GET` serves the
file, from the offset of a `Range: bytes=N-` header where there is one. What is missing is answered with the Hub's own
`X-Error-Code`.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """What the server holds and how it misbehaves; `requests` records what it was asked, e.g. `GET demo.nii.gz 4096-`.

    Attributes:
        files: contents by name.
        cut_after: bytes after which each transfer breaks off, one entry per transfer; later ones are whole.
        always_cut: every transfer breaks off before its first byte.
        flip: a bit of every file is wrong on its way.
        status: answer everything with this HTTP status instead.
    """

    def __init__(self, repo: str, files: dict[str, bytes]):
        self.repo, self.files = repo, files
        self.cut_after: list[int] = []
        self.always_cut = False
        self.flip = False
        self.status: int | None = None
        self.requests: list[str] = []
        self.endpoint = ""


@contextlib.contextmanager
def serve(repo: str, files: dict[str, bytes]) -> Iterator[Hub]:
    """Run a hub on a free port of the loopback interface while the block lasts."""
    hub = Hub(repo, files)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        hub = self.hub
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
        repo, revision, name = match.groups() if match else ("", "", self.path)
        start = int((re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")) or [0, 0])[1])
        hub.requests.append(f"{self.command} {name}" + (f" {start}-" if start else ""))
        if hub.status:
            return self._refuse(hub.status, None)
        if repo != hub.repo:
            return self._refuse(401, "RepoNotFound")
        if revision not in ("main", COMMIT):
            return self._refuse(404, "RevisionNotFound")
        if name not in hub.files:
            return self._refuse(404, "EntryNotFound")
        content = hub.files[name]
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if with_body:
            self._send(content, start)

    def _send(self, content: bytes, start: int) -> None:
        hub = self.hub
        if hub.flip:
            content = bytes([content[0] ^ 1]) + content[1:]
        stop = len(content)
        if hub.always_cut or hub.cut_after:
            stop = start if hub.always_cut else min(start + hub.cut_after.pop(0), stop)
            self.close_connection = True
        self.wfile.write(content[start:stop])

    def _refuse(self, status: int, code: str | None) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()
