"""Rows that are read when they are asked for: what every kind of file gives."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

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


@dataclass(frozen=True)
class ManyRows:
    """The rows of several files, one after the other.

    Attributes:
        parts: the files'.
    """

    parts: Sequence[Rows]

    def __len__(self) -> int:
        return int(self._starts[-1])

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
    def _starts(self) -> Ints:
        return np.concatenate([[0], np.cumsum([len(part) for part in self.parts], dtype=np.int64)]).astype(np.int64)

    def _place(self, index: int) -> tuple[Rows, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"there are {len(self)} rows, there is no row {index}")
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.parts[number], index - int(self._starts[number])
