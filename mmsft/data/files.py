"""A file read at random places: the same after fork, pickling and in threads, and in flat memory."""

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mmsft.errors import ConfigError, DataError


def check_sum(path: Path, kind: Literal["sha1", "sha256"], wanted: str, where: str) -> None:
    """Checks that a file is the one that is stated.

    Args:
        path: the file.
        kind: of the sum.
        wanted: the sum, in hexadecimal digits.
        where: what states it, for errors.

    Raises:
        ConfigError: it is another one, or no file.
    """
    if not path.is_file():
        raise ConfigError(f"{where}: {kind} is of a file, and {path} is none; leave it out, or mend the path")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, kind).hexdigest()
    if found != wanted:
        raise ConfigError(
            f"{where}: {path} has {kind} {found}, and not {wanted}, as is stated: it is another file, or it was "
            "changed; fetch it again, or state its sum"
        )


@dataclass
class RandomFile:
    """Reads byte ranges with `os.pread`: no shared file position, and no mapped pages that count as memory.

    Attributes:
        path: the file.
        size: its size when it was first seen, in bytes.
        changed: when it was last written to, in nanoseconds; with the size it tells whether ranges are still true.
    """

    path: Path
    size: int = field(init=False)
    changed: int = field(init=False)
    _descriptor: int | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        status = self.path.stat()
        self.size, self.changed = status.st_size, status.st_mtime_ns

    def read(self, start: int, end: int) -> bytes:
        """Returns the bytes from `start` up to `end`.

        Raises:
            DataError: the file was replaced or rewritten since it was opened, or can't be read.
        """
        try:
            if self._descriptor is None:
                self._descriptor = self._open()
            return self._read(self._descriptor, start, end)
        except OSError as error:
            raise DataError(f"{self.path}: can't be read: {error.strerror}; restore the file and start again") from None

    def _read(self, descriptor: int, start: int, end: int) -> bytes:
        pieces = []
        while start < end:
            # One call reads 2 GiB at most, and a network file system may give less than was asked for.
            piece = os.pread(descriptor, end - start, start)
            if not piece:
                raise self._changed()
            pieces.append(piece)
            start += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def check_same(self, other: "RandomFile") -> None:
        """Checks that the same file was opened once more.

        Raises:
            DataError: it was changed in between.
        """
        if (other.size, other.changed) != (self.size, self.changed):
            raise self._changed()

    def _open(self) -> int:
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        status = os.fstat(descriptor)
        if (status.st_size, status.st_mtime_ns) != (self.size, self.changed):
            os.close(descriptor)
            raise self._changed()
        return descriptor

    def _changed(self) -> DataError:
        return DataError(
            f"{self.path}: changed since it was opened with {self.size} bytes, so its rows are no longer where they "
            "were; keep data files as they are during a run, and start again"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_descriptor": None}

    def __del__(self) -> None:
        # A failed __post_init__ leaves no descriptor behind.
        descriptor = self.__dict__.get("_descriptor")
        if descriptor is not None and os is not None:  # at the interpreter's exit, modules may be gone before objects
            os.close(descriptor)
