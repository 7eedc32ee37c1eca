"""Rows of Arrow files, as the `datasets` library saves them: mapped into memory, read when they are asked for."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from mmsft.data.rows import Borders, row_of_table
from mmsft.data.schema import columns_of
from mmsft.errors import DataError
from mmsft.types import Record

MAGIC = b"ARROW1"
"""Begins a file with an index; one that was written as a stream begins otherwise."""


class ArrowRows:
    """The rows of an Arrow file, with or without an index.

    Args:
        path: the file.

    Raises:
        DataError: it isn't a whole Arrow file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._batches: list[Any] | None = None
        batches = self._opened()
        self._borders = Borders.of(batch.num_rows for batch in batches)
        self._columns = columns_of(batches[0].schema if batches else pa.schema([]))

    def __len__(self) -> int:
        return len(self._borders)

    def row_id(self, index: int) -> str:
        """Returns ``file.arrow:12``, counted from 1."""
        return f"{self.path.name}:{index + 1}"

    def __getitem__(self, index: int) -> Record:
        """Reads a row.

        Raises:
            IndexError: there is no such row.
            DataError: the row can't be decoded.
        """
        part, row = self._borders.place(index, self.path.name)
        return row_of_table(lambda: self._opened()[part], row, self.row_id(index), self._columns)

    def _opened(self) -> list[Any]:
        if self._batches is None:
            try:
                mapped = pa.memory_map(str(self.path))
                indexed = mapped.read(len(MAGIC)) == MAGIC
                mapped.seek(0)
                if indexed:
                    reader = pa.ipc.open_file(mapped)
                    self._batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
                else:
                    self._batches = list(pa.ipc.open_stream(mapped))
            except (pa.ArrowException, OSError) as error:
                raise DataError(f"{self.path}: not a whole Arrow file: {error}; fetch or write it again") from None
        return self._batches

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_batches": None}
