"""Data sets of the hub, from one that runs here: files, patterns and revisions; and what is said where it refuses."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from huggingface_hub import constants

from mmsft.data.hub import place
from mmsft.errors import ConfigError
from mmsft.modalities.hub import look_for_hub
from tests.makers import opened

FILES = {f"data/part-{number}.jsonl": b'{"instruction": "%d", "output": "a"}\n' % number for number in range(3)}
COMMIT = "0123456789012345678901234567890123456789"


class Hub(BaseHTTPRequestHandler):
    """Answers what the library asks for a data set ``me/toy``."""

    asked: list[str] = []  # noqa: RUF012 - the server makes an object for each request

    def _answer(self, head: bool) -> None:
        self.asked.append(f"{self.command} {self.path}")
        path = self.path.partition("?")[0]
        name = path.rpartition("/resolve/")[2].partition("/")[2]
        if path in ("", "/"):
            self._send(b"hub", {}, head)
        elif path.startswith("/api/datasets/me/toy/tree/"):
            tree = [{"type": "file", "path": file, "size": len(data), "oid": file} for file, data in FILES.items()]
            self._send(json.dumps(tree).encode(), {}, head)
        elif path.startswith("/api/datasets/me/toy"):
            siblings = [{"rfilename": file} for file in [*FILES, "README.md"]]
            self._send(json.dumps({"id": "me/toy", "sha": COMMIT, "siblings": siblings}).encode(), {}, head)
        elif path.startswith("/datasets/me/toy/resolve/") and name in FILES:
            self._send(FILES[name], {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT}, head)
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _send(self, data: bytes, headers: dict[str, str], head: bool) -> None:
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if not head:
            self.wfile.write(data)

    def do_HEAD(self) -> None:
        self._answer(head=True)

    def do_GET(self) -> None:
        self._answer(head=False)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    look_for_hub.cache_clear()
    Hub.asked.clear()
    yield Hub
    look_for_hub.cache_clear()
    server.shutdown()


def test_a_file_is_fetched_once_and_read_like_others(hub: type[Hub]) -> None:
    mixture = opened({"sources": [{"path": "hub:me/toy/data/part-1.jsonl"}]})
    assert mixture.conversation(mixture.train[0]).turns[0].text == "1"
    assert mixture.row_id(mixture.train[0]) == "part-1.jsonl:1"
    opened({"sources": [{"path": "hub:me/toy/data/part-1.jsonl"}]})
    assert sum(asked.startswith("GET /datasets") for asked in hub.asked) == 1


@pytest.mark.parametrize("path", ["hub:me/toy/data/*.jsonl", "hub:me/toy@main/data/part-?.jsonl", "hub:me/toy/data/"])
def test_a_pattern_and_a_folder_are_all_of_their_files(hub: type[Hub], path: str) -> None:
    mixture = opened({"sources": [{"path": path}]})
    assert [mixture.conversation(pair).turns[0].text for pair in mixture.train] == ["0", "1", "2"]
    assert not any("README" in asked for asked in hub.asked)


@pytest.mark.usefixtures("hub")
def test_a_name_that_the_hub_does_not_know_is_refused_with_ways_out() -> None:
    with pytest.raises(
        ConfigError, match=r"hub:me/toi/a.jsonl: can't be fetched: .*hf download --repo-type dataset me/toi"
    ):
        place("hub:me/toi/a.jsonl")
    with pytest.raises(ConfigError, match="write hub:OWNER/NAME/FILE"):
        place("hub:toy")


def test_without_a_hub_its_cache_is_enough(hub: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    place("hub:me/toy/data/part-1.jsonl")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    look_for_hub.cache_clear()
    assert place("hub:me/toy/data/part-1.jsonl").is_file()
    with pytest.raises(ConfigError, match="can't be reached"):
        place("hub:me/toy/data/part-2.jsonl")
