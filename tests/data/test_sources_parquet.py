"""Parquet rows: read by group, in bounded memory, and named when they are broken."""

import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmsft.data.parquet import ParquetRows
from mmsft.data.sources import open_rows
from mmsft.errors import DataError


def write(path: Path, rows: int, group: int) -> Path:
    images = [{"bytes": bytes([n]), "path": None} for n in range(rows)]
    table = pa.table({"n": list(range(rows)), "image": images, "turns": [[{"role": "user"}]] * rows})
    pq.write_table(table, path, row_group_size=group)
    return path


def test_rows_of_all_groups_are_plain_values(tmp_path: Path) -> None:
    rows = open_rows(write(tmp_path / "a.parquet", 10, 3))
    assert [rows[n]["n"] for n in (9, 0, 2, 3, 5, 6)] == [9, 0, 2, 3, 5, 6]
    assert rows[7] == {"n": 7, "image": {"bytes": b"\x07", "path": None}, "turns": [{"role": "user"}]}
    assert (len(rows), rows.row_id(7)) == (10, "a.parquet:8")


def test_the_type_is_seen_in_the_content(tmp_path: Path) -> None:
    assert len(open_rows(write(tmp_path / "a.json", 2, 2))) == 2


def test_only_so_many_bytes_of_groups_are_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", 12, 3)
    one = pq.ParquetFile(path).read_row_group(0).nbytes
    rows = ParquetRows(path, cache_bytes=int(2.5 * one))
    for n in (0, 3, 0, 6):
        rows[n]
    assert tuple(rows._groups) == (0, 2)  # group 1 was used longest ago
    tiny = ParquetRows(path, cache_bytes=1)
    assert [tiny[n]["n"] for n in (0, 4, 1)] == [0, 4, 1]
    assert tuple(tiny._groups) == (0,)


def test_rows_survive_pickling_without_their_cache(tmp_path: Path) -> None:
    rows = ParquetRows(write(tmp_path / "a.parquet", 4, 2))
    rows[0]
    copy = pickle.loads(pickle.dumps(rows))
    assert tuple(copy._groups) == ()
    assert copy[3] == rows[3]


def test_a_damaged_group_fails_its_rows_only(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"text": [f"{n}" * 50 for n in range(4)]})
    pq.write_table(table, path, row_group_size=2, compression="snappy", use_dictionary=False)
    data = bytearray(path.read_bytes())
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    data[column.data_page_offset : column.data_page_offset + column.total_compressed_size] = b"\xff" * (
        column.total_compressed_size
    )
    path.write_bytes(data)
    rows = open_rows(path)
    assert rows[1] == {"text": "1" * 50}
    with pytest.raises(DataError, match=r"a\.parquet:4: can't be decoded"):
        rows[3]
    with pytest.raises(IndexError, match="4 rows"):
        rows[4]
