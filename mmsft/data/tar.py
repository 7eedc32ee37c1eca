"""Rows of WebDataset tars: files of one name are a row, and an index makes any of them the next to be read."""

import tarfile
from collections.abc import Sequence
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
    try:
        with tarfile.open(file.path, "r:") as tar:
            while (info := tar.next()) is not None:
                _file(info, file, samples)
                tar.members = []  # type: ignore[attr-defined] # else it keeps a header of each
    except tarfile.ReadError as error:
        # Cut off inside of a header or behind a file's: what comes before is whole.
        if not samples:
            raise DataError(f"{file.path}: not a tar: {error}; fetch or write it again") from None
    return TarRows(file, tuple(samples), tuple(samples.values()))


def _file(info: tarfile.TarInfo, file: RandomFile, samples: dict[str, _Sample]) -> None:
    if info.isdir():
        return
    folder, _, name = info.name.rpartition("/")
    stem, _, suffix = name.partition(".")
    sample = samples.setdefault(f"{folder}/{stem}" if folder else stem, _Sample())
    if not info.isreg() or info.issparse():
        sample.wrong = f"{info.name!r} is no plain file (a link, or sparse); write the shard with plain files"
    elif info.name.startswith("/") or ".." in info.name.split("/"):
        sample.wrong = f"{info.name!r} leads out of the tar; write the shard again"
    elif info.offset_data + info.size > file.size:
        sample.wrong = f"{info.name!r} is cut off: the tar ends at byte {file.size:,}; fetch it again"
    elif suffix in sample.members:
        sample.wrong = f"{info.name!r} is there twice; write the shard again"
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
