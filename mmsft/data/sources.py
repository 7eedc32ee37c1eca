"""Files of rows: JSONL, a JSON array or Parquet, told apart by their first bytes and read lazily."""

import codecs
from pathlib import Path
from typing import Protocol

from mmsft.data.files import RandomFile
from mmsft.data.jsonarray import find_elements
from mmsft.data.jsonlines import find_lines
from mmsft.data.jsonrows import JsonRows
from mmsft.data.parquet import ParquetRows
from mmsft.errors import ConfigError, DataError, suggest
from mmsft.types import Record

_HEAD = 1 << 16
_LINE_SUFFIXES = (".jsonl", ".ndjson")
_FOREIGN = {
    b"\x1f\x8b": "gzip-compressed; decompress it with gunzip",
    b"\x28\xb5\x2f\xfd": "zstd-compressed; decompress it with unzstd",
    b"BZh": "bzip2-compressed; decompress it with bunzip2",
    b"\xfd7zXZ": "xz-compressed; decompress it with unxz",
    b"PK\x03\x04": "a zip archive; unpack it",
    b"ARROW1": "an Arrow file; save it as Parquet (Dataset.to_parquet)",
    codecs.BOM_UTF16_LE: "UTF-16 text; convert it: iconv -f UTF-16 -t UTF-8",
    codecs.BOM_UTF16_BE: "UTF-16 text; convert it: iconv -f UTF-16 -t UTF-8",
}


class Rows(Protocol):
    """The rows of one source: a sequence that can be pickled and reads a row when it is asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record:
        """Reads a row.

        Raises:
            DataError: this row can't be read; the others can.
        """
        ...

    def row_id(self, index: int) -> str:
        """Returns the row's name in errors, e.g. ``mix.jsonl:1734``, counted from 1; also of a broken row."""
        ...


def open_rows(path: Path) -> Rows:
    """Opens a file of rows; only their places are read.

    Raises:
        ConfigError: no such file, or not one of the three types.
        DataError: the file is empty, cut off, or not a list of rows.
    """
    _check_is_file(path)
    file = RandomFile(path)
    head = file.read(0, min(_HEAD, file.size))
    if head.startswith(b"PAR1"):
        rows: Rows = ParquetRows(path)
    else:
        rows = _open_json(file, head)
    if not len(rows):
        raise DataError(f"{path}: has no rows; remove the source or write the file again")
    return rows


def _check_is_file(path: Path) -> None:
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder; name one JSONL, JSON or Parquet file in it")
    if not path.is_file():
        near = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        where = suggest(path.name, near) if near else f"; the folder {path.parent.absolute()} doesn't exist either"
        looked = "" if path.is_absolute() or not near else f"; looked for {path.absolute()}"
        raise ConfigError(f"{path}: no such file{where}{looked}")


def _open_json(file: RandomFile, head: bytes) -> Rows:
    for mark, meaning in _FOREIGN.items():
        if head.startswith(mark):
            raise ConfigError(f"{file.path}: is {meaning}")
    start = len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0
    text = head[start:].lstrip()
    if not text and file.size <= len(head):
        raise DataError(f"{file.path}: is empty ({file.size} bytes); write or fetch it again")
    if text.startswith(b"["):
        return JsonRows(file, find_elements(file, head.index(b"[", start)))
    if not text.startswith(b"{") and file.path.suffix.lower() not in _LINE_SUFFIXES:
        raise ConfigError(
            f"{file.path}: begins with {text[:20]!r}; a source is JSONL, a JSON array of objects, or Parquet"
        )
    _check_is_lines(file, text)
    return JsonRows(file, find_lines(file, start))


def _check_is_lines(file: RandomFile, text: bytes) -> None:
    """Refuses one pretty-printed object, of which each line would count as a broken row."""
    first, _, rest = text.partition(b"\n")
    following = rest.lstrip()
    if first.rstrip().endswith((b"{", b"[", b",")) and following and not following.startswith(b"{"):
        raise DataError(
            f"{file.path}: is one JSON object over several lines; write an array of rows, `[{{...}}, {{...}}]`, "
            "or one row a line"
        )
