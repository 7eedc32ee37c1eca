"""Rows of a Parquet file, read by row group when they are asked for."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmsft.data.rows import Borders, row_of_table
from mmsft.data.schema import columns_of
from mmsft.errors import DataError
from mmsft.types import Record

CACHE_BYTES = 256 << 20


class ParquetRows:
    """The rows of a Parquet file; the row groups read last are kept, up to a number of bytes.

    Args:
        path: the file.
        cache_bytes: how much is kept; the row group in use is kept even if it alone is larger.

    Raises:
        DataError: it isn't a whole Parquet file.
    """

    def __init__(self, path: Path, cache_bytes: int = CACHE_BYTES) -> None:
        self.path = path
        self._cache_bytes = cache_bytes
        self._groups: OrderedDict[int, Any] = OrderedDict()
        self._file: Any = None
        self._columns = columns_of(self._opened().schema_arrow)
        metadata = self._opened().metadata
        counts = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
        self._borders = Borders.of(counts)

    def __len__(self) -> int:
        return len(self._borders)

    def row_id(self, index: int) -> str:
        """Returns ``file.parquet:12``, counted from 1."""
        return f"{self.path.name}:{index + 1}"

    def __getitem__(self, index: int) -> Record:
        """Reads a row.

        Raises:
            IndexError: there is no such row.
            DataError: the row or its row group can't be decoded.
        """
        part, row = self._borders.place(index, self.path.name)
        return row_of_table(lambda: self._group(part), row, self.row_id(index), self._columns)

    def _group(self, number: int) -> Any:
        if number in self._groups:
            self._groups.move_to_end(number)
            return self._groups[number]
        table = self._opened().read_row_group(number, use_threads=False)
        self._groups[number] = table
        while len(self._groups) > 1 and sum(group.nbytes for group in self._groups.values()) > self._cache_bytes:
            self._groups.popitem(last=False)
        return table

    def _opened(self) -> Any:
        if self._file is None:
            try:
                self._file = pq.ParquetFile(self.path)
            except (pa.ArrowException, OSError) as error:
                raise DataError(f"{self.path}: not a whole Parquet file: {error}; fetch or write it again") from None
        return self._file

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_groups": OrderedDict()}
