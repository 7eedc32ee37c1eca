"""Only what is wanted of an archive is unpacked, and nothing of it gets out of the folder."""

import io
import lzma
import os
import tarfile
from pathlib import Path

import pytest

from mmsft.assets.unpack import unpack
from mmsft.errors import ConfigError


def debian(file: Path, members: dict[str, bytes], *, compress: bool = True) -> Path:
    """Writes a package of Debian as dpkg-deb does: an ar archive of three members, the last a tar (deb(5))."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for path, content in members.items():
            file_of_it = tarfile.TarInfo(path)
            file_of_it.size = len(content)
            tar.addfile(file_of_it, io.BytesIO(content))
        link = tarfile.TarInfo("./usr/share/data/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/"
        tar.addfile(link)
    packed = lzma.compress(data.getvalue()) if compress else data.getvalue()
    name = "data.tar.xz" if compress else "data.tar"
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as out:
        out.write(b"!<arch>\n")
        for member, content in {"debian-binary": b"2.0\n", "control.tar": b"odd", name: packed}.items():
            out.write(f"{member:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode())
            out.write(content + b"\n" * (len(content) % 2))
    return file


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("compress", [True, False])
def test_a_debian_packages_files_are_unpacked_without_links(compress: bool, tmp_path: Path) -> None:
    members = {"./usr/share/data/a/b.txt": b"b" * 100_000, "./usr/share/data/c.txt": b"c", "./usr/share/doc/x": b"x"}
    package = debian(tmp_path / "x_1_all.deb", members, compress=compress)
    unpack(package, "usr/share/data/*", tmp_path / "into")
    assert files(tmp_path / "into") == {"a/b.txt": b"b" * 100_000, "c.txt": b"c"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"MZ", "not a package of Debian"), (b"!<arch>\n", "without files"), (b"", "not a package of Debian")],
)
def test_what_is_no_debian_package_says_so(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "x.deb").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"x\.deb: .*{reason}"):
        unpack(tmp_path / "x.deb", "*", tmp_path / "into")


def test_a_debian_packages_member_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    package = debian(tmp_path / "x.deb", {"./usr/share/data/../../../evil": b"evil"})
    with pytest.raises(ConfigError, match="leaves the folder"):
        unpack(package, "usr/share/data/*", tmp_path / "into")
    assert not list(tmp_path.rglob("evil"))


def test_an_archive_without_what_is_wanted_is_refused(tmp_path: Path) -> None:
    package = debian(tmp_path / "x.deb", {"./usr/share/data/a": b""})
    with pytest.raises(ConfigError, match="holds nothing like usr/lib"):
        unpack(package, "usr/lib/*", tmp_path / "into")


@pytest.mark.parametrize("name", ["package/data/../../../evil", "package/data/x/../../evil"])
def test_a_member_that_leaves_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    archive = tmp_path / "package-1.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        member = tarfile.TarInfo(name)
        member.size = 4
        file.addfile(member, io.BytesIO(b"evil"))
    with pytest.raises(ConfigError, match="leaves the folder"):
        unpack(archive, "package/data/*", tmp_path / "into")
    assert not list(tmp_path.rglob("evil"))


def test_links_in_an_archive_are_left_out(tmp_path: Path) -> None:
    archive = tmp_path / "package-1.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        link = tarfile.TarInfo("package/data/link")
        link.type = tarfile.SYMTYPE
        link.linkname = "/"
        file.addfile(link)
        member = tarfile.TarInfo("package/data/file")
        file.addfile(member, io.BytesIO(b""))
    unpack(archive, "package/data/*", tmp_path / "into")
    assert os.listdir(tmp_path / "into") == ["file"]
