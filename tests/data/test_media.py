"""A row's media are found inside of the media root, and nowhere else."""

import base64
from pathlib import Path

import pytest

from mmsft.data.media import resolve
from mmsft.errors import DataError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "media"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a b.png").write_bytes(b"picture")
    (tmp_path / "secret.png").write_bytes(b"secret")
    (tmp_path / "media-more").mkdir()
    (tmp_path / "media-more" / "a.png").write_bytes(b"other")
    return folder.resolve()


@pytest.mark.parametrize(
    "ref", ["sub/a b.png", "./sub/../sub/a b.png", "{root}/sub/a b.png", "file://{root}/sub/a%20b.png"]
)
def test_a_file_inside_the_root_is_found(root: Path, ref: str) -> None:
    assert resolve(ref.replace("{root}", str(root)), root, "r:1") == root / "sub" / "a b.png"


@pytest.mark.parametrize(
    "ref", ["../secret.png", "sub/../../secret.png", "{root}/../secret.png", "/etc/hostname", "{root}-more/a.png"]
)
def test_a_path_that_leaves_the_root_is_refused(root: Path, ref: str) -> None:
    with pytest.raises(DataError, match=r"r:1: .*outside of the media root .*media_root"):
        resolve(ref.replace("{root}", str(root)), root, "r:1")


def test_a_link_may_not_lead_out_of_the_root(root: Path) -> None:
    (root / "out.png").symlink_to(root.parent / "secret.png")
    (root / "in.png").symlink_to(root / "sub" / "a b.png")
    assert resolve("in.png", root, "r:1") == root / "sub" / "a b.png"
    with pytest.raises(DataError, match="outside of the media root"):
        resolve("out.png", root, "r:1")


def test_a_root_that_is_a_link_is_followed(root: Path) -> None:
    link = root.parent / "link"
    link.symlink_to(root)
    assert resolve("sub/a b.png", link, "r:1") == root / "sub" / "a b.png"


@pytest.mark.parametrize(
    ("ref", "says"),
    [
        ("sub/b.png", "no such file in the media root"),
        ("nope/deep/b.png", "no folder nope in the media root"),
        ("sub", "is a folder"),
        ("", "is a folder"),
        ("a\0b.png", "can't be looked up"),
        ("x" * 5000, "can't be looked up"),
        ("loop", "can't be looked up"),
        ("https://example.org/a.png", "download it first"),
        ("s3://bucket/a.png", "download it first"),
        ("data:image/png,abc", "isn't base64"),
        ("data:image/png;base64,abc", "broken base64"),
        ("data:image/png;base64,*", "broken base64"),
        ("data:image/png;base64,ü", "broken base64"),
        ("data:image/png;base64,", "0 bytes"),
        (b"", "0 bytes"),
    ],
)
def test_what_cannot_be_read_is_an_error_that_names_the_row(root: Path, ref: str | bytes, says: str) -> None:
    (root / "loop").symlink_to(root / "loop")
    with pytest.raises(DataError, match=f"r:1: .*{says}") as caught:
        resolve(ref, root, "r:1")
    assert len(str(caught.value)) < 500 + len(str(root)) * 3


def test_bytes_and_data_uris_are_the_medium_itself(root: Path) -> None:
    uri = "data:image/png;base64," + base64.encodebytes(b"picture" * 30).decode()
    assert resolve(uri, root, "r:1") == b"picture" * 30
    assert resolve(b"picture", root, "r:1") == b"picture"
