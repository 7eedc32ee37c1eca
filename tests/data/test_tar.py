"""WebDataset tars as rows: read in any order, media where they lie, and what is broken is alone in it."""

import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import pytest

from mmsft.data.media import resolve
from mmsft.data.media_reader import file_of
from mmsft.data.members import Member
from mmsft.data.sources import open_rows
from mmsft.errors import DataError
from mmsft.types import Media
from tests.makers import opened, picture

TALK = {"conversations": [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "Red."}]}


def tar(path: Path, *files: tuple[str, bytes], **changes: Any) -> Path:
    with tarfile.open(path, "w", format=changes.pop("format", tarfile.USTAR_FORMAT)) as out:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return path


def png(folder: Path, colour: str = "red") -> bytes:
    return picture(folder / f"{colour}.png", colour).read_bytes()


def test_files_of_one_name_are_a_row_and_its_media_lie_in_the_tar(tmp_path: Path) -> None:
    image = png(tmp_path)
    path = tar(
        tmp_path / "s.tar",
        ("a/1.json", json.dumps(TALK).encode()),
        ("a/1.png", image),
        ("2.txt", b" A red square.\n"),
        ("2.png", image),
        ("2.left.png", image),
    )
    rows = open_rows(path)
    assert [rows.row_id(index) for index in range(2)] == ["s.tar:a/1", "s.tar:2"]
    first, second = pickle.loads(pickle.dumps(rows))[0], rows[1]
    assert first["conversations"] == TALK["conversations"]
    assert second["txt"] == "A red square."
    assert len(second["image"]) == 2
    packed = resolve(first["image"], tmp_path, "r:1")
    assert isinstance(packed, Member)
    assert packed.read() == file_of(Media("image", str(packed))) == image
    assert packed.name == "1.png"


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_are_read_in_each_of_tars_formats(tmp_path: Path, format: int) -> None:
    name = "folder/" * 12 + "é" * 20 if format != tarfile.USTAR_FORMAT else "folder/" * 12 + "name"
    rows = open_rows(tar(tmp_path / "s.tar", (f"{name}.txt", b"x"), format=format))
    assert rows.row_id(0) == f"s.tar:{name}"


def test_a_recipe_reads_dialogues_with_their_pictures_from_a_tar(tmp_path: Path) -> None:
    path = tar(tmp_path / "s.tar", ("1.json", json.dumps(TALK).encode()), ("1.png", png(tmp_path)))
    mixture = opened({"sources": [{"path": str(path)}]})
    assert mixture.sources[0].format == "llava"
    [medium] = mixture.conversation(mixture.train[0]).turns[0].media
    assert isinstance(file_of(medium), bytes)


def test_a_row_may_not_name_bytes_of_a_tar_outside_of_its_media_root(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    tar(tmp_path / "s.tar", ("1.png", b"x"))
    for path in ("../s.tar", str(tmp_path / "s.tar"), "nowhere.tar"):
        with pytest.raises(DataError, match=r"r:1: .* is no tar in the media root"):
            resolve(f"tar:{path}#512+1/1.png", tmp_path / "root", "r:1")


@pytest.mark.parametrize("name", ["../1.png", "/1.png", "a/../../1.png"])
def test_a_file_that_leads_out_of_the_tar_is_its_rows_failure(tmp_path: Path, name: str) -> None:
    rows = open_rows(tar(tmp_path / "s.tar", (name, b"x"), ("2.txt", b"y")))
    with pytest.raises(DataError, match="leads out of the tar"):
        rows[0]
    assert rows[1]["txt"] == "y"


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_their_rows_failure(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as out:
        info = tarfile.TarInfo("1.png")
        info.type, info.linkname = kind, "/etc/passwd"
        out.addfile(info)
        out.addfile(tarfile.TarInfo("2.txt"), io.BytesIO(b""))
    rows = open_rows(tmp_path / "s.tar")
    with pytest.raises(DataError, match="is no plain file"):
        rows[0]
    assert rows[1]["txt"] == ""


@pytest.mark.parametrize("left", [513, 700, 1024, 1500, 2100])
def test_a_shard_that_was_cut_off_keeps_what_is_whole(tmp_path: Path, left: int) -> None:
    path = tar(tmp_path / "s.tar", ("1.txt", b"a" * 300), ("2.txt", b"b" * 300), ("3.txt", b"c" * 300))
    path.write_bytes(path.read_bytes()[:left])
    rows = open_rows(path)
    said = []
    for index in range(len(rows)):
        try:
            said.append(rows[index]["txt"][0])
        except DataError as error:
            said.append("cut" if "is cut off" in str(error) else str(error))
    assert said == {513: ["cut"], 700: ["cut"], 1024: ["a"], 1500: ["a"], 2100: ["a", "b"]}[left]


def test_a_file_that_is_there_twice_and_json_that_is_none_are_their_rows_failures(tmp_path: Path) -> None:
    rows = open_rows(tar(tmp_path / "s.tar", ("1.txt", b"a"), ("1.txt", b"b"), ("2.json", b"[1]"), ("3.txt", b"\xff")))
    for index, says in enumerate(("is there twice", "must be a JSON object", "isn't UTF-8")):
        with pytest.raises(DataError, match=says):
            rows[index]


def test_a_compressed_tar_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w:gz") as out:
        out.addfile(tarfile.TarInfo("1.txt"), io.BytesIO(b""))
    with pytest.raises(Exception, match="gunzip"):
        open_rows(tmp_path / "s.tar")
