"""Files of rows, told apart by their first bytes and read lazily; and folders and patterns of them."""

import codecs
from collections.abc import Sequence
from pathlib import Path

from mmsft.data.arrow import MAGIC, ArrowRows
from mmsft.data.delimited import DELIMITERS, open_delimited
from mmsft.data.files import RandomFile
from mmsft.data.folders import open_folder, open_pattern
from mmsft.data.jsonarray import find_elements
from mmsft.data.jsonlines import find_lines
from mmsft.data.jsonrows import JsonRows
from mmsft.data.objects import open_object
from mmsft.data.parquet import ParquetRows
from mmsft.data.rows import ManyRows, Rows
from mmsft.data.tar import is_tar, open_tar
from mmsft.errors import ConfigError, DataError, suggest

_HEAD = 1 << 16
_LINE_SUFFIXES = (".jsonl", ".ndjson")
_FOREIGN = {
    b"\x1f\x8b": "gzip-compressed; decompress it with gunzip",
    b"\x28\xb5\x2f\xfd": "zstd-compressed; decompress it with unzstd",
    b"BZh": "bzip2-compressed; decompress it with bunzip2",
    b"\xfd7zXZ": "xz-compressed; decompress it with unxz",
    b"PK\x03\x04": "a zip archive; unpack it",
    codecs.BOM_UTF16_LE: "UTF-16 text; convert it: iconv -f UTF-16 -t UTF-8",
    codecs.BOM_UTF16_BE: "UTF-16 text; convert it: iconv -f UTF-16 -t UTF-8",
}


def open_rows(path: Path, split: str | None = None) -> Rows:
    """Opens rows; only their places are read.

    Args:
        path: a file, a folder, or a pattern of files.
        split: of a folder with several.

    Raises:
        ConfigError: no such file, or not one of the types that are known.
        DataError: a file is empty, cut off, or not a list of rows.
    """
    if path.is_dir():
        return open_folder(path, split, open_file)
    if split is not None:
        raise ConfigError(f"{path}: is no folder of splits; leave `split` out")
    if "*" in path.name or "?" in path.name:
        return open_pattern(path, open_file)
    return open_file(path)


def open_files(paths: Sequence[Path]) -> Rows:
    """Opens the rows of several files, one after the other.

    Raises:
        ConfigError: one of them isn't there, or not of the types that are known.
        DataError: one of them is empty, cut off, or not a list of rows.
    """
    return ManyRows(tuple(map(open_file, paths)))


def open_file(path: Path) -> Rows:
    """Opens the rows of one file; as `open_rows`."""
    _check_is_file(path)
    file = RandomFile(path)
    head = file.read(0, min(_HEAD, file.size))
    if head.startswith(b"PAR1"):
        rows: Rows = ParquetRows(path)
    elif head.startswith(MAGIC) or path.suffix.lower() == ".arrow":
        rows = ArrowRows(path)
    elif path.suffix.lower() in DELIMITERS:
        rows = open_delimited(file, _begin(head))
    elif is_tar(head):
        rows = open_tar(file)
    else:
        rows = _open_json(file, head)
    if not len(rows):
        raise DataError(f"{path}: has no rows; remove the source or write the file again")
    return rows


def _check_is_file(path: Path) -> None:
    if not path.is_file():
        near = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        where = suggest(path.name, near) if near else f"; the folder {path.parent.absolute()} doesn't exist either"
        looked = "" if path.is_absolute() or not near else f"; looked for {path.absolute()}"
        raise ConfigError(f"{path}: no such file{where}{looked}")


def _open_json(file: RandomFile, head: bytes) -> Rows:
    for mark, meaning in _FOREIGN.items():
        if head.startswith(mark):
            raise ConfigError(f"{file.path}: is {meaning}")
    start = _begin(head)
    text = head[start:].lstrip()
    if not text and file.size <= len(head):
        raise DataError(f"{file.path}: is empty ({file.size} bytes); write or fetch it again")
    if text.startswith(b"["):
        return JsonRows(file, find_elements(file, head.index(b"[", start)))
    if not text.startswith(b"{") and file.path.suffix.lower() not in _LINE_SUFFIXES:
        raise ConfigError(
            f"{file.path}: begins with {text[:20]!r}; a source is JSONL, a JSON array of objects, Parquet, Arrow, or a "
            ".csv or .tsv file"
        )
    if _spans_lines(text):
        return open_object(file)
    rows = JsonRows(file, find_lines(file, start))
    return open_object(file, otherwise=rows) if len(rows) == 1 else rows


def _begin(head: bytes) -> int:
    """Returns where the text begins, after a byte order mark."""
    return len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0


def _spans_lines(text: bytes) -> bool:
    """Tells one pretty-printed object, of which each line would count as a broken row."""
    first, _, rest = text.partition(b"\n")
    following = rest.lstrip()
    return first.rstrip().endswith((b"{", b"[", b",")) and bool(following) and not following.startswith(b"{")
