"""Files by URL: from public hosts unless others are allowed, whole or not at all, and again after they made room."""

import json
import multiprocessing
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from mmsft.data import download, remote
from mmsft.data.download import Refused
from mmsft.data.media_reader import file_of
from mmsft.data.remote import LIMIT, fetched, place, remembered, restored
from mmsft.errors import ConfigError, DataError
from tests.makers import opened, picture
from tests.web import Web


def test_a_file_is_fetched_once(web: str) -> None:
    path = fetched(f"{web}/a.txt", "any")
    assert path.read_bytes() == b"hello"
    assert path.name.endswith("-a.txt")
    assert fetched(f"{web}/a.txt", "any") == path
    assert Web.asked["/a.txt"] == 1


def test_a_private_address_is_refused_unless_it_is_allowed(web: str) -> None:
    with pytest.raises(DataError, match=r"127\.0\.0\.1, an address of a private network.*urls: any"):
        fetched(f"{web}/a.txt")
    assert not Web.asked
    assert not list(remote.folder().glob("[!.]*"))


@pytest.mark.parametrize(
    "address",
    [
        "10.1.2.3",
        "192.168.0.9",
        "169.254.169.254",
        "0.0.0.0",
        "::1",
        "fe80::1",
        "::ffff:10.0.0.1",
        "2002:a00:1::",
        "fc00::1",
    ],
)
def test_a_name_of_which_one_address_is_private_is_refused(
    web: str, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    def resolved(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", port)),
            (family, socket.SOCK_STREAM, 6, "", (address, port)),
        ]

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    with pytest.raises(Refused, match=r"rebound\.example is"):
        fetched("http://rebound.example/a.txt")


def test_a_redirect_is_followed_to_where_it_may_lead_only(web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fetched(f"{web}/to/{web}/a.txt", "any").read_bytes() == b"hello"
    with pytest.raises(DataError, match="is not allowed"):
        fetched(f"{web}/to/file:///etc/passwd", "any")
    public = download._public
    # The server itself counts as public; where it sends to doesn't.
    monkeypatch.setattr(download, "_public", lambda address: address == "127.0.0.1" or public(address))
    with pytest.raises(DataError, match=r"10\.0\.0\.1, an address of a private network"):
        fetched(f"{web}/to/http://10.0.0.1/a.txt")


@pytest.mark.parametrize(
    ("path", "said", "tries"),
    [
        ("/none", "answers 404.*name it", 1),
        ("/cut", "4 bytes came of 8", 3),
        ("/slow", "can't be fetched.*timed out", 3),
    ],
)
def test_what_cannot_be_fetched_is_said_and_leaves_nothing(web: str, path: str, said: str, tries: int) -> None:
    with pytest.raises(DataError, match=said):
        fetched(f"{web}{path}", "any")
    assert Web.asked[path] == tries
    assert not [file for file in remote.folder().iterdir() if not file.name.endswith(".lock")]


def test_a_server_that_is_busy_is_asked_again(web: str) -> None:
    Web.fail["/a.txt"] = 2
    assert fetched(f"{web}/a.txt", "any").read_bytes() == b"hello"
    assert Web.asked["/a.txt"] == 3


def test_a_host_that_does_not_answer_is_named(web: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(DataError, match=rf"127.0.0.1:{port}/a.*refused.*tried 3 times"):
        fetched(f"http://127.0.0.1:{port}/a", "any")


def test_secrets_of_a_url_are_not_told(web: str) -> None:
    with pytest.raises(DataError) as caught:
        fetched(f"{web}/none?signature=secret", "any")
    assert "secret" not in str(caught.value)


def test_what_was_used_the_longest_ago_makes_room_and_comes_back(web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIMIT, "25")
    Web.files |= {f"/{name}": name.encode() * 10 for name in "bcd"}
    b, c = fetched(f"{web}/b", "any"), fetched(f"{web}/c", "any")
    kept = fetched(f"{web}/a.txt", "any", keep=True)
    os.utime(b, ns=(0, b.stat().st_mtime_ns))
    fetched(f"{web}/b", "any")  # used again, so that c is the older one
    os.utime(c, ns=(0, c.stat().st_mtime_ns))
    changed = c.stat().st_mtime_ns
    fetched(f"{web}/d", "any")
    assert b.exists()
    assert kept.exists()
    assert not c.exists()
    assert restored(c).read_bytes() == b"c" * 10
    assert c.stat().st_mtime_ns == changed  # to a reader it is the file that it opened


def test_a_file_that_changed_meanwhile_is_refused(web: str) -> None:
    path = fetched(f"{web}/a.txt", "any")
    path.unlink()
    Web.files["/a.txt"] = b"HELLO"
    with pytest.raises(DataError, match="changed since it was fetched first"):
        fetched(f"{web}/a.txt", "any")
    remote._beside(path).unlink()
    assert fetched(f"{web}/a.txt", "any").read_bytes() == b"HELLO"


def test_a_limit_that_is_no_size_is_said(web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIMIT, "much")
    with pytest.raises(ConfigError, match="200 GB"):
        fetched(f"{web}/a.txt", "any")


def _fetch(url: str) -> None:
    assert fetched(url, "any").read_bytes() == b"hello"


def test_processes_fetch_a_file_once(web: str) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_fetch, args=(f"{web}/a.txt",)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0] * 4
    assert Web.asked["/a.txt"] == 1


def rows(count: int, **more: Any) -> bytes:
    lines = [{"instruction": f"Say {n}.", "output": f"{n}", **more} for n in range(count)]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def source(path: str, **more: Any) -> dict[str, Any]:
    return {"sources": [{"path": path, "urls": "any", "name": "far", **more}]}


def test_a_file_of_rows_is_read_by_its_url(web: str) -> None:
    Web.files["/rows.jsonl"] = rows(5)
    mixture = opened(source(f"{web}/rows.jsonl", where={"output": ["1", "3"]}))
    assert [mixture.conversation(pair).turns[1].text for pair in mixture.train] == ["1", "3"]
    told = remembered(place(f"{web}/rows.jsonl"))
    assert told is not None
    assert told.kept


@pytest.mark.parametrize(
    ("more", "said"),
    [({"urls": None}, "private network"), ({"sha256": "0" * 64}, "has sha256"), ({"split": "train"}, "`split` isn't")],
)
def test_what_is_wrong_with_a_source_on_the_network_is_said(web: str, more: dict[str, Any], said: str) -> None:
    Web.files["/rows.jsonl"] = rows(2)
    with pytest.raises(ConfigError, match=said):
        opened(source(f"{web}/rows.jsonl", **more))


def test_media_are_read_by_their_url_where_the_source_says_so(web: str, tmp_path: Path) -> None:
    picture(tmp_path / "red.png", "red")
    Web.files["/red.png"] = (tmp_path / "red.png").read_bytes()
    (tmp_path / "rows.jsonl").write_bytes(rows(1, image=f"{web}/red.png").replace(b"Say", b"<image> Say"))
    refused = opened(source(str(tmp_path / "rows.jsonl"), urls=None))
    with pytest.raises(DataError, match="urls: public"):
        refused.conversation(refused.train[0])
    allowed = opened(source(str(tmp_path / "rows.jsonl")))
    (medium,) = allowed.conversation(allowed.train[0]).turns[0].media
    assert not Web.asked
    file = file_of(medium)
    assert isinstance(file, Path)
    assert file.read_bytes() == Web.files["/red.png"]
    private = opened(source(str(tmp_path / "rows.jsonl"), urls="public"))
    Path(file).unlink()
    (medium,) = private.conversation(private.train[0]).turns[0].media
    with pytest.raises(DataError, match="private network"):
        file_of(medium)
