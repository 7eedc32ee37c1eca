"""Rows of a CSV or TSV file, of which only the places are known until one is asked for."""

import csv
from dataclasses import dataclass
from io import StringIO
from typing import Final

import numpy as np

from mmsft.data.files import RandomFile
from mmsft.data.jsonlines import CHUNK
from mmsft.data.jsonrows import Spans
from mmsft.data.rows import check_index
from mmsft.errors import DataError
from mmsft.types import Ints, Record

DELIMITERS: Final = {".csv": ",", ".tsv": "\t"}
"""By the suffix that a file must have: the content alone doesn't tell it from other text."""

_QUOTE, _NEWLINE = b'"\n'
_MOST: Final = 1 << 26
"""Bytes of a field."""
_BLANK: Final = 3
"""A line of so many bytes has something in it: fewer may be a carriage return and a space."""


@dataclass(frozen=True)
class DelimitedRows:
    """The rows of a file whose first line names the columns; all values are text.

    Attributes:
        file: where they are.
        spans: their places in it, without the header's.
        columns: the names.
        delimiter: between two values.
    """

    file: RandomFile
    spans: Spans
    columns: tuple[str, ...]
    delimiter: str

    def __len__(self) -> int:
        return len(self.spans.starts)

    def row_id(self, index: int) -> str:
        """Returns ``file.csv:12``: the row, counted from 1, without the header."""
        return f"{self.file.path.name}:{index + 1}"

    def __getitem__(self, index: int) -> Record:
        """Reads a row.

        Raises:
            IndexError: there is no such row.
            DataError: it isn't UTF-8, or it has more or fewer values than there are columns.
        """
        check_index(index, len(self), self.file.path.name)
        row = self.row_id(index)
        values = _values(
            self.file.read(int(self.spans.starts[index]), int(self.spans.ends[index])), self.delimiter, row
        )
        if len(values) != len(self.columns):
            raise DataError(
                f"{row}: {len(values)} values for {len(self.columns)} columns ({', '.join(self.columns)}); is a "
                "quote or a delimiter missing? Mend or remove the row"
            )
        return dict(zip(self.columns, values, strict=True))


def open_delimited(file: RandomFile, start: int) -> DelimitedRows:
    """Opens a file.

    Args:
        file: the file; its suffix tells the delimiter.
        start: first byte after a byte order mark.

    Raises:
        DataError: the header can't be read, or names a column twice.
    """
    delimiter = DELIMITERS[file.path.suffix.lower()]
    spans = _find_records(file, start)
    if not len(spans.starts):
        raise DataError(f"{file.path}: is empty; write or fetch it again")
    header = _values(file.read(int(spans.starts[0]), int(spans.ends[0])), delimiter, f"{file.path.name}, its header")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f"{file.path}: the header names {', '.join(map(repr, twice))} twice; rename one")
    return DelimitedRows(file, Spans(spans.starts[1:], spans.ends[1:]), tuple(header), delimiter)


def _values(data: bytes, delimiter: str, row: str) -> list[str]:
    csv.field_size_limit(_MOST)
    try:
        found = list(csv.reader(StringIO(data.decode(), newline=""), delimiter=delimiter, strict=True))
    except UnicodeDecodeError as error:
        raise DataError(f"{row}: byte {error.start} isn't UTF-8; write the file in UTF-8, or mend the row") from None
    except csv.Error as error:
        raise DataError(f"{row}: not valid CSV: {error}; mend or remove the row") from None
    return found[0] if found else []


def _find_records(file: RandomFile, start: int, chunk: int = CHUNK) -> Spans:
    """Returns where the records lie: a line break inside quotes ends none, and blank lines are none."""
    quotes = 0
    breaks: list[Ints] = []
    for at in range(start, file.size, chunk):
        data = np.frombuffer(file.read(at, min(at + chunk, file.size)), np.uint8)
        inside = (np.cumsum(data == _QUOTE) + quotes) % 2 == 1
        quotes = (quotes + int(np.count_nonzero(data == _QUOTE))) % 2
        breaks.append(np.flatnonzero((data == _NEWLINE) & ~inside) + at)
    ends = np.concatenate([*breaks, [file.size]]).astype(np.int64)
    starts = np.concatenate([[start], ends[:-1] + 1]).astype(np.int64)
    short = np.flatnonzero(ends - starts < _BLANK)
    blank = [line for line in short if not file.read(int(starts[line]), int(ends[line])).strip()]
    return Spans(np.delete(starts, blank), np.delete(ends, blank))
