"""Media inside of larger files, named by where they lie, and read when they are asked for."""

import base64
import binascii
import json
import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Final, Literal, NamedTuple, TypeAlias

from mmsft.data.files import RandomFile
from mmsft.data.remote import restored
from mmsft.errors import DataError

Form: TypeAlias = Literal["tar", "json"]
_FORM: Final = re.compile(r"(?P<form>tar|json):(?P<path>.*)#(?P<offset>\d+)\+(?P<size>\d+)/(?P<name>[^/]*)", re.DOTALL)


class Member(NamedTuple):
    """A file in a tar, or in JSON as base64.

    Attributes:
        path: of the tar or the JSON.
        offset: of the first byte in it.
        size: in bytes, as it is written there.
        name: of the file, without folders.
        form: what `path` is: in a ``tar`` the file's bytes lie as they are, in ``json`` as a string of base64.
    """

    path: str
    offset: int
    size: int
    name: str
    form: Form = "tar"

    def __str__(self) -> str:
        return f"{self.form}:{self.path}#{self.offset}+{self.size}/{self.name}"

    def read(self) -> bytes:
        """Returns the file's bytes.

        Raises:
            DataError: what it lies in was changed since it was opened, can't be read, or ends before the file does; or
                it isn't base64.
        """
        restored(Path(self.path))
        data = opened(self.path).read(self.offset, self.offset + self.size)
        return data if self.form == "tar" else _of_json(data, f"{self.path}: {self.name!r}")


def member(ref: str) -> Member | None:
    """Returns the file that a medium's ref names inside of a larger one; None if it names none."""
    found = _FORM.fullmatch(ref) if ref.startswith(("tar:", "json:")) else None
    if found is None:
        return None
    form: Form = "tar" if found["form"] == "tar" else "json"
    return Member(found["path"], int(found["offset"]), int(found["size"]), found["name"], form)


def inside(found: Member, root: Path, row: str) -> Member:
    """Returns the member with the full path of its tar.

    Raises:
        DataError: there is no such tar in the media root.
    """
    path = _inside(found.path, root)
    if path is None:
        raise DataError(f"{row}: {found.path!r} is no tar in the media root {root}; mend the row, or media_root")
    return found._replace(path=path)


# Rows of one tar follow one another, and links take long to follow.
@lru_cache(maxsize=64)
def _inside(name: str, root: Path) -> str | None:
    path = restored((root / name).resolve())
    return str(path) if path.is_relative_to(root.resolve()) and path.is_file() else None


def from_base64(text: str, what: str) -> bytes:
    """Returns the bytes that a text of base64 stands for, line breaks in it allowed.

    Raises:
        DataError: it is broken, or stands for none.
    """
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"{what} is broken base64: {error}; encode the file again") from None
    if not data:
        raise DataError(f"{what} holds 0 bytes; mend or remove the row")
    return data


def _of_json(data: bytes, what: str) -> bytes:
    """Returns the bytes that a value of JSON holds, which may be a ``data:`` URI."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{what} isn't valid JSON: {error}; mend the file") from None
    if not isinstance(value, str):
        raise DataError(f"{what} should be a text of base64, and is {type(value).__name__}; mend the file")
    return from_base64(value.partition(",")[2] if value.startswith("data:") else value, what)


def opened(path: str) -> RandomFile:
    """Returns a file that media lie in, as it is now.

    Raises:
        DataError: it can't be read.
    """
    try:
        status = os.stat(path)
        return _version(path, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror}; restore the file and start again") from None


# One for each file that is being read, in each process.
@lru_cache(maxsize=64)
def _version(path: str, size: int, changed: int) -> RandomFile:
    return RandomFile(Path(path))
