"""Unpacks what is wanted of a package's archive, and lets none of its members out of the folder."""

import fnmatch
import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Final

from mmsft.errors import ConfigError

_AR: Final = b"!<arch>\n"
_AR_HEADER: Final = 60


def unpack(archive: Path, keep: str, into: Path) -> None:
    """Writes an archive's members to a folder.

    Args:
        archive: a wheel, a tar, or a package of Debian.
        keep: pattern of their names; what stands before its ``*`` is cut from them.
        into: the folder; may not exist yet.

    Raises:
        ConfigError: a member's name leads out of the folder, or none fits the pattern.
    """
    base = keep.partition("*")[0]
    kept = 0
    for name, content in _members(archive):
        path = PurePosixPath(name)
        if not fnmatch.fnmatchcase(name, keep) or path.name.startswith("."):
            continue
        if ".." in path.parts or path.is_absolute():
            raise ConfigError(f"{archive.name}: its member {name!r} leaves the folder; don't trust this archive")
        file = into / name.removeprefix(base)
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("wb") as out:
            shutil.copyfileobj(content, out)
        kept += 1
    if not kept:
        raise ConfigError(f"{archive.name}: holds nothing like {keep}")


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Gives name and content of the regular files; links and devices are left out."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for info in wheel.infolist():
                if not info.is_dir():
                    with wheel.open(info) as content:
                        yield info.filename, content
    elif archive.suffix == ".deb":
        with archive.open("rb") as deb:
            _seek_data(deb, archive.name)
            with tarfile.open(fileobj=deb, mode="r|*") as data:
                yield from _regular(data)
    else:
        with tarfile.open(archive) as tar:
            yield from _regular(tar)


def _regular(tar: tarfile.TarFile) -> Iterator[tuple[str, IO[bytes]]]:
    for member in tar:
        opened = tar.extractfile(member) if member.isreg() else None
        if opened is not None:
            with opened:
                yield member.name.removeprefix("./"), opened


def _seek_data(deb: IO[bytes], name: str) -> None:
    """Goes to the files of a Debian package: an ar archive whose last member is a tar (deb(5))."""
    if deb.read(len(_AR)) != _AR:
        raise ConfigError(f"{name}: not a package of Debian")
    while len(header := deb.read(_AR_HEADER)) == _AR_HEADER:
        if header.startswith(b"data.tar"):
            return
        size = int(header[48:58])
        deb.seek(size + size % 2, 1)
    raise ConfigError(f"{name}: a package of Debian without files")
