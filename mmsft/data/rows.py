"""Rows that are read when they are asked for: what every kind of file gives."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from mmsft.data.schema import Columns
from mmsft.errors import DataError
from mmsft.types import Ints, Record


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


def check_index(index: int, count: int, name: str) -> None:
    """Checks that there is such a row.

    Args:
        index: of the row.
        count: how many there are.
        name: of the file or folder that they are in, for the error.

    Raises:
        IndexError: there isn't.
    """
    if not 0 <= index < count:
        raise IndexError(f"{name} has {count} rows, there is no row {index}")


@dataclass(frozen=True)
class Borders:
    """Where the parts of a whole begin, e.g. the row groups of a file.

    Attributes:
        starts: [parts + 1] first row of each part, and one past the last row.
    """

    starts: Ints

    @classmethod
    def of(cls, counts: Iterable[int]) -> "Borders":
        """Returns the borders of parts with so many rows."""
        return cls(np.cumsum([0, *counts], dtype=np.int64))

    def __len__(self) -> int:
        return int(self.starts[-1])

    def place(self, index: int, name: str) -> tuple[int, int]:
        """Returns the part in which a row lies, and its number there.

        Args:
            index: of the row.
            name: of the whole, for the error.

        Raises:
            IndexError: there is no such row.
        """
        check_index(index, len(self), name)
        part = int(np.searchsorted(self.starts, index, side="right")) - 1
        return part, index - int(self.starts[part])


def row_of_table(table: Callable[[], Any], index: int, row: str, columns: Columns) -> Record:
    """Reads a row of one of Arrow's tables or batches.

    Args:
        table: returns it.
        index: of the row in it.
        row: the row's id, for errors.
        columns: what its schema says of them.

    Raises:
        DataError: the table or the row can't be decoded.
    """
    try:
        record: dict[str, Any] = table().slice(index, 1).to_pylist()[0]
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{row}: can't be decoded: {error}; fetch or write the file again") from None
    return columns.read(record, row)


@dataclass(frozen=True)
class SomeRows:
    """Some of the rows of a file.

    Attributes:
        rows: all of them.
        picks: [n] which ones.
    """

    rows: Rows
    picks: Ints

    def __len__(self) -> int:
        return len(self.picks)

    def __getitem__(self, index: int) -> Record:
        """Reads a row; as of `Rows`."""
        return self.rows[self._pick(index)]

    def row_id(self, index: int) -> str:
        """Returns the row's name in the file."""
        return self.rows.row_id(self._pick(index))

    def _pick(self, index: int) -> int:
        check_index(index, len(self), "the sample")
        return int(self.picks[index])


@dataclass(frozen=True)
class ManyRows:
    """The rows of several files, one after the other.

    Attributes:
        parts: the files'.
    """

    parts: Sequence[Rows]

    def __len__(self) -> int:
        return len(self._borders)

    def __getitem__(self, index: int) -> Record:
        """Reads a row.

        Raises:
            IndexError: there is no such row.
            DataError: this row can't be read.
        """
        part, row = self._place(index)
        return part[row]

    def row_id(self, index: int) -> str:
        """Returns the row's name in its file."""
        part, row = self._place(index)
        return part.row_id(row)

    @cached_property
    def _borders(self) -> Borders:
        return Borders.of(map(len, self.parts))

    def _place(self, index: int) -> tuple[Rows, int]:
        part, row = self._borders.place(index, "the source")
        return self.parts[part], row
