"""Data sets of the hub, from one that runs here: files, patterns and revisions; and what is said where it refuses."""

import json
import sys
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import datasets
import pytest
from huggingface_hub import constants

from mmsft.data.hub import place
from mmsft.errors import ConfigError
from mmsft.modalities.hub import look_for_hub
from tests.makers import opened

FILES = {f"data/part-{number}.jsonl": b'{"instruction": "%d", "output": "a"}\n' % number for number in range(3)}
CARD = b"""---
configs:
- config_name: en
  data_files:
  - {split: train, path: en/train-*.jsonl}
  - {split: test, path: en/test.jsonl}
- {config_name: zh, data_files: zh/*.jsonl}
---
"""
SETS = {
    "README.md": CARD,
    **{f"en/{name}.jsonl": b'{"q": "%s", "a": "a"}\n' % name.encode() for name in ("train-0", "train-1", "test")},
    "zh/all.jsonl": b'{"q": "zh", "a": "a"}\n',
}
REPOS = {"me/toy": FILES, "me/sets": SETS}
COMMIT = "0123456789012345678901234567890123456789"


def tree(files: Mapping[str, bytes], folder: str, deep: bool) -> list[dict[str, Any]]:
    """Returns what a folder of a repository has: all files below it, or only what is right in it."""
    inside = {
        file.removeprefix(f"{folder}/"): file for file in files if file.startswith(f"{folder}/" if folder else "")
    }
    whole = [name for name in inside if deep or "/" not in name]
    folders = sorted({name.partition("/")[0] for name in inside if name not in whole})
    listed = [{"type": "file", "path": inside[name], "size": len(files[inside[name]]), "oid": name} for name in whole]
    return [*listed, *({"type": "directory", "path": f"{folder}/{name}".lstrip("/"), "oid": name} for name in folders)]


class Hub(BaseHTTPRequestHandler):
    """Answers what the libraries ask for the data sets of `REPOS`."""

    asked: list[str] = []  # noqa: RUF012 - the server makes an object for each request

    def _answer(self, head: bool) -> None:
        self.asked.append(f"{self.command} {self.path}")
        path = self.path.partition("?")[0]
        repo = "/".join(path.removeprefix("/api").split("/")[2:4])
        files = REPOS.get(repo, {})
        name = path.rpartition("/resolve/")[2].partition("/")[2]
        if path in ("", "/"):
            self._send(b"hub", {}, head)
        elif files and path.startswith(f"/api/datasets/{repo}/tree/"):
            deep = "recursive=true" in self.path.lower()
            self._send(json.dumps(tree(files, path.split("/tree/")[1].partition("/")[2], deep)).encode(), {}, head)
        elif files and path.startswith("/api/datasets/"):
            siblings = [{"rfilename": file} for file in [*files, "README.md"]]
            self._send(json.dumps({"id": repo, "sha": COMMIT, "siblings": siblings}).encode(), {}, head)
        elif name in files:
            self._send(files[name], {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT}, head)
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound" if files else "RepoNotFound")
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
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", endpoint)
    monkeypatch.setenv("MMSFT_CACHE", str(tmp_path / "ours"))
    for name in ("HF_DATASETS_CACHE", "HF_MODULES_CACHE"):
        monkeypatch.setattr(datasets.config, name, tmp_path / name)
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


def described(where: Path, **says: str) -> dict[str, Any]:
    """Returns a recipe with a data set of the hub that LLaMA-Factory's file describes."""
    columns = {"prompt": "q", "response": "a"}
    file = where / "dataset_info.json"
    file.write_text(json.dumps({"it": {"hf_hub_url": "me/sets", "columns": columns, **says}}))
    return {"sources": [{"path": str(file), "entry": "it"}]}


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("says", "wanted"),
    [
        ({"subset": "en"}, ["train-0", "train-1"]),
        ({"subset": "en", "split": "test"}, ["test"]),
        ({"subset": "zh"}, ["zh"]),
        ({"folder": "en", "split": "test"}, ["test"]),
    ],
)
def test_subsets_splits_and_folders_of_an_entry_are_those_of_the_datasets_library(
    tmp_path: Path, says: dict[str, str], wanted: list[str]
) -> None:
    mixture = opened(described(tmp_path, **says))
    assert [mixture.conversation(pair).turns[0].text for pair in mixture.train] == wanted


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("says", "error"),
    [
        (
            {"subset": "en", "split": "tets"},
            r"me/sets: no split 'tets' \(did you mean 'test'\?\); there are train, test",
        ),
        ({"subset": "fr"}, r"me/sets: can't be fetched: .*'fr' not found.*'en', 'zh'"),
        ({"hf_hub_url": "me/none"}, r"me/none: can't be fetched: .*hf download --repo-type dataset me/none"),
    ],
)
def test_what_the_hub_does_not_have_of_an_entry_is_said(tmp_path: Path, says: dict[str, str], error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        opened(described(tmp_path, **says))


@pytest.mark.usefixtures("hub")
def test_an_entry_of_the_hub_is_read_from_its_cache_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = described(tmp_path, subset="en")
    online = opened(recipe)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    look_for_hub.cache_clear()
    offline = opened(recipe)
    assert [offline.row_id(pair) for pair in offline.train] == [online.row_id(pair) for pair in online.train]
    with pytest.raises(ConfigError, match="can't be reached"):
        opened(described(tmp_path, hf_hub_url="me/toy"))


def test_without_the_datasets_library_an_entry_of_the_hub_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"pip install 'mmsft\[datasets\]'; or name the files, hub:me/sets/FILE"):
        opened(described(tmp_path))
