"""A web server on this machine, and the fixture that starts it."""

from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import pytest

from mmsft.data import download, remote


class Web(BaseHTTPRequestHandler):
    """Gives files by path, and answers as some servers do."""

    files: dict[str, bytes] = {}  # noqa: RUF012 - the server makes an object for each request
    asked: Counter[str] = Counter()  # noqa: RUF012
    fail: dict[str, int] = {}  # noqa: RUF012

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.asked[path] += 1
        if self.fail.get(path, 0) > 0:
            self.fail[path] -= 1
            self.answer(503, b"busy")
        elif path.startswith("/to/"):
            self.answer(302, b"", Location=path.removeprefix("/to/"))
        elif path == "/cut":
            self.answer(200, b"half", size=8)
        elif path == "/slow":
            self.server.stop.wait(5)  # type: ignore[attr-defined]
        elif path in self.files:
            self.answer(200, self.files[path], ETag=f'"{hash(self.files[path])}"')
        else:
            self.answer(404, b"")

    def answer(self, code: int, data: bytes, size: int | None = None, **headers: str) -> None:
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(data) if size is None else size)}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Returns the address of a server on this machine; the cache is empty."""
    monkeypatch.setenv("MMSFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "_PAUSES", (0.0, 0.0))
    monkeypatch.setattr(download, "_TIMEOUT", 0.3)
    Web.files, Web.asked, Web.fail = {"/a.txt": b"hello"}, Counter(), {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Web)
    server.stop = Event()  # type: ignore[attr-defined]
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.stop.set()  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()
