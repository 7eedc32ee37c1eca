"""Media inside of tar files, named by where they lie, and read when they are asked for."""

import re
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

from mmsft.data.files import RandomFile
from mmsft.data.remote import restored
from mmsft.errors import DataError

_FORM: Final = re.compile(r"tar:(?P<path>.*)#(?P<offset>\d+)\+(?P<size>\d+)/(?P<name>[^/]*)", re.DOTALL)


class Member(NamedTuple):
    """A file in a tar.

    Attributes:
        path: of the tar.
        offset: of the file's first byte in it.
        size: in bytes.
        name: of the file, without folders.
    """

    path: str
    offset: int
    size: int
    name: str

    def __str__(self) -> str:
        return f"tar:{self.path}#{self.offset}+{self.size}/{self.name}"

    def read(self) -> bytes:
        """Returns the file's bytes.

        Raises:
            DataError: the tar was changed since it was opened, can't be read, or ends before the file does.
        """
        restored(Path(self.path))
        return _opened(self.path).read(self.offset, self.offset + self.size)


def member(ref: str) -> Member | None:
    """Returns the file that a medium's ref names inside of a tar; None if it names none."""
    found = _FORM.fullmatch(ref) if ref.startswith("tar:") else None
    return found and Member(found["path"], int(found["offset"]), int(found["size"]), found["name"])


def inside(found: Member, root: Path, row: str) -> Member:
    """Returns the member with the full path of its tar.

    Raises:
        DataError: there is no such tar in the media root.
    """
    path = restored((root / found.path).resolve())
    if not path.is_relative_to(root.resolve()) or not path.is_file():
        raise DataError(f"{row}: {found.path!r} is no tar in the media root {root}; mend the row, or media_root")
    return found._replace(path=str(path))


# One for each shard that is being read, in each process.
@lru_cache(maxsize=64)
def _opened(path: str) -> RandomFile:
    try:
        return RandomFile(Path(path))
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror}; restore the file and start again") from None
