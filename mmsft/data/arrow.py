"""Rows of Arrow files, as the `datasets` library saves them: mapped into memory, read when they are asked for."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mmsft.errors import DataError
from mmsft.types import Ints, Record

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
        counts = [batch.num_rows for batch in self._opened()]
        self._starts: Ints = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def row_id(self, index: int) -> str:
        """Returns ``file.arrow:12``, counted from 1."""
        return f"{self.path.name}:{index + 1}"

    def __getitem__(self, index: int) -> Record:
        """Reads a row.

        Raises:
            IndexError: there is no such row.
            DataError: the row can't be decoded.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path.name} has {len(self)} rows, there is no row {index}")
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        try:
            batch = self._opened()[number]
            row: dict[str, Any] = batch.slice(index - int(self._starts[number]), 1).to_pylist()[0]
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DataError(f"{self.row_id(index)}: can't be decoded: {error}; fetch or write the file again") from None
        return row

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
