"""Rows of WebDataset tars: files of one name are a row, and an index makes any of them the next to be read."""

import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from mmsft.data.files import RandomFile
from mmsft.data.folders import MEDIA
from mmsft.data.jsonrows import parse_row
from mmsft.data.members import Member
from mmsft.data.rows import check_index
from mmsft.errors import DataError
from mmsft.types import Record

MEMBERS: Final = "__members__"
"""Column of a row's files by their suffix, for formats that name them."""
_TEXTS: Final = ("txt", "text", "caption", "cls")
_LARGEST_TEXT: Final = 64 << 20
"""Bytes of a JSON or text file in a tar that are read at most."""
_LARGEST_HEADER: Final = 1 << 20
"""Bytes of a header, long names and attributes included."""

SOUND, LINK, OUTSIDE, CUT, TWICE = range(5)
FLAWS: Final = (
    "",
    "is no plain file (a link, or sparse); write the tar with plain files",
    "leads out of the tar; write it again",
    "is cut off: the tar ends before the file does; fetch it again",
    "is there twice; write the tar again",
)
"""What may be wrong with a file in a tar."""


@dataclass
class _Sample:
    """A row's files by suffix, or what is wrong with it."""

    members: dict[str, Member] = field(default_factory=dict)
    wrong: str = ""


@dataclass(frozen=True)
class TarRows:
    """The rows of a tar: files that follow one another and have one name up to its first dot.

    Attributes:
        file: the tar.
        keys: the rows' names.
    """

    file: RandomFile
    keys: Sequence[str]
    _samples: Sequence[_Sample] = field(repr=False)

    def __len__(self) -> int:
        return len(self.keys)

    def row_id(self, index: int) -> str:
        """Returns ``shard-000.tar:KEY``."""
        return f"{self.file.path.name}:{self.keys[index]}"

    def __getitem__(self, index: int) -> Record:
        """Reads a row: the keys of its JSON, its texts by suffix, its media by modality as places in the tar.

        Raises:
            IndexError: there is no such row.
            DataError: a file of the row is cut off, a link, or no JSON or text.
        """
        check_index(index, len(self), self.file.path.name)
        sample, row = self._samples[index], self.row_id(index)
        if sample.wrong:
            raise DataError(f"{row}: {sample.wrong}")
        record: dict[str, Any] = {}
        media: dict[str, list[str]] = {}
        for suffix, member in sample.members.items():
            end = suffix.rsplit(".", 1)[-1].lower()
            if end == "json":
                record |= parse_row(self._text(member, row), row)
            elif end in _TEXTS:
                record[suffix] = _decoded(self._text(member, row), f"{row}, {suffix}").strip()
            elif f".{end}" in MEDIA:
                media.setdefault(MEDIA[f".{end}"], []).append(str(member))
        record |= {name: refs[0] if len(refs) == 1 else refs for name, refs in media.items()}
        return {**record, MEMBERS: {suffix: str(member) for suffix, member in sample.members.items()}}

    def _text(self, member: Member, row: str) -> bytes:
        if member.size > _LARGEST_TEXT:
            raise DataError(f"{row}: {member.name} has {member.size:,} bytes, too many for a text; mend the shard")
        return self.file.read(member.offset, member.offset + member.size)


def open_tar(file: RandomFile) -> TarRows:
    """Opens a tar: reads the headers of its files.

    Raises:
        DataError: it isn't a tar, or is compressed.
    """
    samples: dict[str, _Sample] = {}
    for info in headers(file):
        _file(info, file, samples)
    return TarRows(file, tuple(samples), tuple(samples.values()))


def headers(file: RandomFile) -> Iterator[tarfile.TarInfo]:
    """Yields the headers of a tar's files, without those of folders.

    Raises:
        DataError: it isn't a tar, or is compressed.
    """
    begun = False
    try:
        with tarfile.open(fileobj=_Headers(file), mode="r:") as tar:  # type: ignore[call-overload] # it only reads
            while (info := tar.next()) is not None:
                begun = True
                tar.members = []  # else it keeps a header of each
                if not info.isdir():
                    yield info
                if flaw(info, file.size) == CUT:
                    return
    except tarfile.TarError as error:
        # Cut off inside of a header or behind a file's: what comes before is whole.
        if not begun:
            raise DataError(f"{file.path}: not a tar: {error}; fetch or write it again") from None


class _Headers:
    """A file that gives no more at once than a header may have, whatever size it states."""

    def __init__(self, file: RandomFile) -> None:
        self._file, self._at = file, 0

    def read(self, count: int) -> bytes:
        if not 0 <= count <= _LARGEST_HEADER:
            raise tarfile.ReadError(f"a header states {count:,} bytes")
        start, self._at = self._at, min(self._at + count, self._file.size)
        return self._file.read(start, self._at)

    def seek(self, at: int) -> None:
        self._at = min(at, self._file.size)

    def tell(self) -> int:
        return self._at


def flaw(info: tarfile.TarInfo, size: int) -> int:
    """Returns which of `FLAWS` a file of a tar of so many bytes has."""
    if not info.isreg() or info.issparse():
        return LINK
    if info.name.startswith("/") or ".." in info.name.split("/"):
        return OUTSIDE
    return CUT if info.offset_data + info.size > size else SOUND


def _file(info: tarfile.TarInfo, file: RandomFile, samples: dict[str, _Sample]) -> None:
    folder, _, name = info.name.rpartition("/")
    stem, _, suffix = name.partition(".")
    sample = samples.setdefault(f"{folder}/{stem}" if folder else stem, _Sample())
    wrong = flaw(info, file.size) or (TWICE if suffix in sample.members else SOUND)
    if wrong:
        sample.wrong = f"{info.name!r} {FLAWS[wrong]}"
    else:
        sample.members[suffix] = Member(file.path.name, info.offset_data, info.size, name)


def _decoded(data: bytes, where: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: byte {error.start} isn't UTF-8; write the file in UTF-8, or mend the row") from None


def is_tar(head: bytes) -> bool:
    """Tells a tar by its first header."""
    return head[257:262] == b"ustar"
