"""Media in one file: found by name in a tar or in JSON of base64, read from where they lie, and nothing outside."""

import base64
import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsft.data.archive import Archive, open_archive
from mmsft.data.media import resolve
from mmsft.data.media_reader import file_of
from mmsft.data.members import Member, member
from mmsft.errors import ConfigError, DataError
from mmsft.types import Media
from tests.makers import opened, picture, write_rows

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def tar(path: Path, files: dict[str, bytes], format: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(path, "w", format=format) as out:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return path


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def read(archive: Archive, ref: str) -> bytes:
    found = resolve(ref, archive, "r:1")
    assert isinstance(found, Member)
    data = file_of(Media("image", str(found)))
    assert isinstance(data, bytes)
    return data


@pytest.mark.parametrize("format", FORMATS)
def test_each_file_of_a_tar_is_found_by_its_name_however_that_is_written(tmp_path: Path, format: int) -> None:
    long = "folder/" * 15 + "1.png"
    files = {"1.png": b"one", "./a/1.png": b"two", "a/b.c/2.jpg": b"", long: b"three"}
    archive = pickle.loads(pickle.dumps(open_archive(tar(tmp_path / "m.tar", files, format))))
    assert [read(archive, ref) for ref in ("1.png", "./1.png", "a/1.png", "a//x/../1.png", "./a/1.png", long)] == [
        *(b"one", b"one", b"two", b"two", b"two"),
        b"three",
    ]
    assert read(archive, "a/b.c/2.jpg") == b""


@settings(max_examples=60, deadline=None)
@given(
    files=st.dictionaries(st.text(max_size=300), st.binary(min_size=1, max_size=40), min_size=1, max_size=8),
    indent=st.sampled_from([None, 2]),
    ascii_only=st.booleans(),
)
def test_each_value_of_json_is_found_by_its_key_however_that_is_written(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], indent: int | None, ascii_only: bool
) -> None:
    path = tmp_path_factory.mktemp("media") / "LA.json"
    text = json.dumps({name: encoded(data) for name, data in files.items()}, indent=indent, ensure_ascii=ascii_only)
    path.write_bytes(b"\xef\xbb\xbf" * (indent is None) + text.encode(errors="surrogatepass"))
    archive = open_archive(path)
    for name, data in files.items():
        if not name.startswith(("/", "../")) and name != "..":
            assert archive.find(name, "r:1").read() == data


def test_a_place_survives_being_written_as_a_ref(tmp_path: Path) -> None:
    for form in ("tar", "json"):
        place = Member(str(tmp_path / "a#1+2.tar"), 3, 4, "x.png", form)
        assert member(str(place)) == place
    assert member("json: a title") is None


def test_base64_may_be_a_data_uri_broken_into_lines_or_escaped(tmp_path: Path) -> None:
    data = bytes(range(250))
    text = encoded(data)
    lines = "\n".join(text[at : at + 76] for at in range(0, len(text), 76))
    values = {"a": f"data:image/png;base64,{text}", "b": lines}
    path = tmp_path / "m.json"
    path.write_text(json.dumps(values)[:-1] + ', "c": "' + text.replace("/", "\\/") + '"}')
    archive = open_archive(path)
    assert [read(archive, name) for name in "abc"] == [data] * 3


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("@@", "is broken base64"),
        ("", "holds 0 bytes"),
        (["AAAA"], "should be a text of base64, and is list"),
        (None, "NoneType"),
    ],
)
def test_what_is_no_base64_fails_where_it_is_read(tmp_path: Path, value: Any, says: str) -> None:
    path = tmp_path / "m.json"
    path.write_text(json.dumps({"a": value, "b": "AAAA"}))
    archive = open_archive(path)
    with pytest.raises(DataError, match=rf"m.json: 'a'.* {says}"):
        archive.find("a", "r:1").read()
    assert archive.find("b", "r:1").read() == b"\0\0\0"


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_a_link_or_a_device_is_not_followed(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "m.tar", "w") as out:
        info = tarfile.TarInfo("1.png")
        info.type, info.linkname = kind, "/etc/passwd"
        out.addfile(info)
    with pytest.raises(DataError, match=r"r:1: '1.png' in .*m.tar is no plain file \(a link, or sparse\)"):
        open_archive(tmp_path / "m.tar").find("1.png", "r:1")


@pytest.mark.parametrize("ref", ["../1.png", "/1.png", "a/../../1.png", "..", "tar:/etc/passwd#0+10/x"])
def test_nothing_outside_is_found(tmp_path: Path, ref: str) -> None:
    files = {"../1.png": b"x", "/1.png": b"x", "a/../../1.png": b"x", "1.png": b"inside"}
    archive = open_archive(tar(tmp_path / "m.tar", files))
    with pytest.raises(DataError, match=r"r:1: .*(leads out of|no 'tar:)"):
        resolve(ref, archive, "r:1")
    assert read(archive, "1.png") == b"inside"


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    """A header may state any size, and a sparse file is larger than what it takes in the tar."""
    path = tmp_path / "m.tar"
    with tarfile.open(path, "w") as out:
        info = tarfile.TarInfo("huge.png")
        out.addfile(info, io.BytesIO(b""))
        info.size = 1 << 50
        out.fileobj.write(info.tobuf(tarfile.GNU_FORMAT))
    with pytest.raises(DataError, match=r"'huge.png' in .* is cut off|is there twice"):
        open_archive(path).find("huge.png", "r:1")
    sparse = tarfile.TarInfo("sparse.png")
    sparse.type = tarfile.GNUTYPE_SPARSE
    with path.open("wb") as file:
        file.write(sparse.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(DataError, match=r"no plain file \(a link, or sparse\)"):
        open_archive(path).find("sparse.png", "r:1")


def test_a_name_that_is_there_twice_is_ambiguous(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "m.tar", "w") as out:
        for name in ("a.png", "./a.png", "b.png"):
            out.addfile(tarfile.TarInfo(name), io.BytesIO(b""))
    archive = open_archive(tmp_path / "m.tar")
    with pytest.raises(DataError, match=r"r:1: 'a.png' in .* is there twice"):
        archive.find("a.png", "r:1")
    assert archive.find("b.png", "r:1").size == 0
    (tmp_path / "m.json").write_text('{"a": "AAAA", "a": "BBBB"}')
    with pytest.raises(DataError, match="is there twice"):
        open_archive(tmp_path / "m.json").find("a", "r:1")


@pytest.mark.parametrize("left", [700, 1500, 2100])
def test_of_a_tar_that_was_cut_off_what_is_whole_is_found(tmp_path: Path, left: int) -> None:
    path = tar(tmp_path / "m.tar", {f"{n}.png": str(n).encode() * 300 for n in range(3)})
    path.write_bytes(path.read_bytes()[:left])
    archive = open_archive(path)
    whole = {700: 0, 1500: 1, 2100: 2}[left]
    for number in range(whole):
        assert read(archive, f"{number}.png") == str(number).encode() * 300
    with pytest.raises(DataError, match=r"is cut off|names are like '0.png'"):
        archive.find(f"{whole}.png", "r:1")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"a": "AAAA", "b": "AA', r"the object isn't closed.*inside a string"),
        (b'{"a": "AAAA", 5: "AAAA"}', "pair 2 isn't a name with a text"),
        (b'{"a": "AAAA"} {"b": "AAAA"}', "follows at byte"),
        (b"{}", "holds no files"),
        (b"\x1f\x8b\x08\x00", r"begins with .*it is a folder, a tar that isn't compressed, or JSON"),
        (b'["AAAA"]', "it is a folder, a tar"),
        (b"", "it is a folder, a tar"),
    ],
)
def test_a_media_root_that_is_neither_says_what_it_may_be(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "m.json"
    path.write_bytes(content)
    rows = write_rows(tmp_path / "rows.jsonl", [{"instruction": "i", "output": "o"}])
    with pytest.raises((ConfigError, DataError), match=f"source 'rows.jsonl': .*{says}"):
        opened({"sources": [{"path": str(rows), "media_root": str(path)}]})


def test_mimic_its_pictures_are_read_by_their_ids(tmp_path: Path) -> None:
    red = picture(tmp_path / "red.png", "red").read_bytes()
    (tmp_path / "LA.json").write_text(json.dumps({"LA_IMG_1": encoded(red)}))
    data = {"LA_1": {"instruction": "What?", "answer": "Red.", "image_ids": ["LA_IMG_1"], "rel_ins_ids": []}}
    data["LA_2"] = {**data["LA_1"], "image_ids": ["LA_IMG_2"]}
    (tmp_path / "LA_instructions.json").write_text(json.dumps({"data": data}))
    source = {"path": str(tmp_path / "LA_instructions.json"), "media_root": str(tmp_path / "LA.json")}
    mixture = opened({"sources": [source]})
    [medium] = mixture.conversation(mixture.train[0]).turns[0].media
    assert file_of(medium) == red
    with pytest.raises(DataError, match=r"LA_2: no 'LA_IMG_2' in .*LA.json, whose names are like 'LA_IMG_1'"):
        mixture.conversation(mixture.train[1])


def test_boxes_are_placed_by_the_size_of_a_picture_in_a_tar(tmp_path: Path) -> None:
    image = picture(tmp_path / "red.png", "red", side=8).read_bytes()
    root = tar(tmp_path / "m.tar", {"red.png": image})
    said = [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "<bbox>"}]
    row = {"messages": said, "images": ["red.png"], "objects": {"bbox": [[2, 2, 8, 4]]}}
    rows = write_rows(tmp_path / "rows.jsonl", [row])
    mixture = opened({"sources": [{"path": str(rows), "media_root": str(root)}]})
    assert mixture.conversation(mixture.train[0]).turns[1].text == "[(250,250),(1000,500)]"


def test_an_archive_that_was_changed_is_not_read_on(tmp_path: Path) -> None:
    path = tar(tmp_path / "m.tar", {"1.png": b"x" * 2000})
    archive = open_archive(path)
    assert archive.find("1.png", "r:1").read() == b"x" * 2000
    tar(path, {"1.png": b"y" * 20_000})
    with pytest.raises(DataError, match="changed since it was opened"):
        archive.find("1.png", "r:1")
    assert open_archive(path).find("1.png", "r:1").read() == b"y" * 20_000
