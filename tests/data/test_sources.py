"""Opening files of rows: what is accepted, what is refused, and that a broken row is alone in being broken."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mmsft.data.files import RandomFile
from mmsft.data.jsonlines import find_lines
from mmsft.data.jsonrows import JsonRows
from mmsft.data.rows import Rows
from mmsft.data.sources import open_rows
from mmsft.errors import ConfigError, DataError


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def everything(rows: Rows) -> list[Any]:
    return [dict(rows[index]) for index in range(len(rows))]


@pytest.mark.parametrize(
    "data",
    [
        b'{"n": 1}\n{"n": 2}\n',
        b'{"n": 1}\n{"n": 2}',
        b'{"n": 1}\r\n{"n": 2}\r\n',
        b'\xef\xbb\xbf{"n": 1}\n{"n": 2}\n',
        b'\n  \n{"n": 1}\n\t\n\r\n  {"n": 2}  \n\n',
        b'[{"n": 1}, {"n": 2}]',
        b'\xef\xbb\xbf [\n  {\n    "n": 1\n  },\n  {\n    "n": 2\n  }\n]\n',
    ],
)
def test_every_layout_of_the_same_rows_reads_alike(tmp_path: Path, data: bytes) -> None:
    assert everything(open_rows(write(tmp_path / "rows.data", data))) == [{"n": 1}, {"n": 2}]


def test_a_row_is_named_by_its_line_also_behind_blank_lines(tmp_path: Path) -> None:
    rows = open_rows(write(tmp_path / "mix.jsonl", b'\n{"n": 1}\n\n{"n": 2}\n'))
    assert [rows.row_id(index) for index in range(2)] == ["mix.jsonl:2", "mix.jsonl:4"]


def test_a_row_of_an_array_is_named_by_its_number(tmp_path: Path) -> None:
    rows = open_rows(write(tmp_path / "mix.json", b'[{"n": 1},\n\n{"n": 2}]'))
    assert rows.row_id(1) == "mix.json:2"


def test_the_content_decides_the_type_and_not_the_name(tmp_path: Path) -> None:
    assert everything(open_rows(write(tmp_path / "array.jsonl", b'[{"n": 1}]'))) == [{"n": 1}]
    assert everything(open_rows(write(tmp_path / "lines.json", b'{"n": 1}\n'))) == [{"n": 1}]


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (b'{"n": "caf\xe9"}', r"isn't UTF-8"),
        (b'{"n": "\\ud83d"}', r"surrogate"),
        (b'{"n": 1,}', r"not valid JSON"),
        (b'{"n": [[[[1]', r"not valid JSON"),
        (b"[1, 2]", r"must be a JSON object, this is list"),
        (b"null", r"must be a JSON object"),
        (b'{"n": ' + b"9" * 5000 + b"}", r"not valid JSON"),
        (b"[" * 100_000, r"not valid JSON"),
    ],
)
def test_a_broken_line_is_named_and_the_others_are_read(tmp_path: Path, broken: bytes, says: str) -> None:
    rows = open_rows(write(tmp_path / "mix.jsonl", b'{"n": 1}\n' + broken + b'\n{"n": 3}\n'))
    assert [rows[0], rows[2]] == [{"n": 1}, {"n": 3}]
    with pytest.raises(DataError, match=rf"mix\.jsonl:2: .*{says}"):
        rows[1]


def test_a_half_written_last_line_is_said_to_be_cut_off(tmp_path: Path) -> None:
    rows = open_rows(write(tmp_path / "mix.jsonl", b'{"n": 1}\n{"n": "hel'))
    assert rows[0] == {"n": 1}
    with pytest.raises(DataError, match=r"mix\.jsonl:2: the file's last row is cut off"):
        rows[1]


def test_a_whole_surrogate_pair_is_a_character(tmp_path: Path) -> None:
    assert open_rows(write(tmp_path / "a.jsonl", b'{"n": "\\uD83D\\uDE00"}'))[0] == {"n": "\N{GRINNING FACE}"}


@pytest.mark.parametrize(
    ("element", "says"),
    [(b"7", "this is int"), (b'"a, b"', "this is str"), (b'{"n": "\xff"}', "UTF-8"), (b"", "nothing")],
)
def test_a_broken_element_is_named_and_the_others_are_read(tmp_path: Path, element: bytes, says: str) -> None:
    rows = open_rows(write(tmp_path / "mix.json", b'[{"n": 1}, ' + element + b', {"n": 3}]'))
    assert [rows[0], rows[2]] == [{"n": 1}, {"n": 3}]
    with pytest.raises(DataError, match=rf"mix\.json:2: .*{says}"):
        rows[1]


@pytest.mark.parametrize(
    ("data", "error", "says"),
    [
        (b"", DataError, "is empty"),
        (b" \n\n", DataError, "is empty"),
        (b"[ ]", DataError, "has no rows"),
        (b'[{"n": 1}, {"n": 2', DataError, r"isn't closed: the file ends at byte 18, inside element 2"),
        (b'[{"n": 1}, {"n": "a', DataError, "inside a string"),
        (b'[{"n": 1}]\n[{"n": 2}]', DataError, r"follows at byte 11"),
        (b'{\n  "data": [\n    {"n": 1}\n  ]\n}', DataError, "is one JSON object with data; a source is an array"),
        (b"id,text\n1,hello\n", ConfigError, r"begins with b'id,text.*or a .csv or .tsv file"),
        (b"\x1f\x8b\x08\x00", ConfigError, "gunzip"),
        ('{"n": 1}'.encode("utf-16"), ConfigError, "iconv"),
        (b"PAR1 and no more", DataError, "not a whole Parquet file"),
    ],
)
def test_a_file_that_holds_no_rows_is_refused_with_a_way_out(
    tmp_path: Path, data: bytes, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        open_rows(write(tmp_path / "mix.json", data))


def test_a_missing_file_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", b"{}")
    with pytest.raises(ConfigError, match=r"no such file \(did you mean 'train.jsonl'\?\)"):
        open_rows(tmp_path / "trian.jsonl")


@pytest.mark.parametrize("data", [b'{"n": 1}\n{"n": 2}\n', b'[{"n": 1}, {"n": 2}]'])
def test_rows_survive_pickling_and_fork(tmp_path: Path, data: bytes) -> None:
    rows = open_rows(write(tmp_path / "mix.json", data))
    assert rows[0] == {"n": 1}
    assert everything(pickle.loads(pickle.dumps(rows))) == everything(rows)
    child = os.fork()
    if child == 0:
        os._exit(0 if everything(rows) == [{"n": 1}, {"n": 2}] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_file_rewritten_under_the_run_is_refused_and_not_misread(tmp_path: Path) -> None:
    path = write(tmp_path / "mix.jsonl", b'{"n": 1}\n{"n": 2}\n')
    worker = pickle.dumps(open_rows(path))
    write(path, b'{"n": 10}\n{"n": 20}\n')
    with pytest.raises(DataError, match="changed since it was opened"):
        pickle.loads(worker)[1]


@pytest.mark.parametrize("index", [-1, 2])
def test_rows_end_like_a_sequence(tmp_path: Path, index: int) -> None:
    rows = open_rows(write(tmp_path / "mix.jsonl", b"{}\n{}\n"))
    with pytest.raises(IndexError, match="2 rows"):
        rows[index]
    assert list(rows) == [{}, {}]  # type: ignore[call-overload]


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("data", [b"{}\n\n  \n {}\r\n{}", b"\n\n{}\n", b"{}", b" \n{}\n ", b"{}\n \t{}"])
def test_the_places_of_lines_do_not_depend_on_the_chunks(tmp_path: Path, data: bytes, chunk: int) -> None:
    file = RandomFile(write(tmp_path / "a.jsonl", data))
    spans = find_lines(file, 0, chunk)
    lines = data.split(b"\n")
    rows = JsonRows(file, spans)
    expected = [(f"a.jsonl:{n}", line) for n, line in enumerate(lines, 1) if line.strip()]
    assert [(rows.row_id(i), data[spans.starts[i] : spans.ends[i]]) for i in range(len(rows))] == expected


_OPEN_IN_FLAT_MEMORY = """
import resource, sys, time
from pathlib import Path
from mmsft.data.sources import open_rows
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
rows = open_rows(Path(sys.argv[1]))
seconds = time.perf_counter() - start
for index in range(0, len(rows), 997):
    rows[index]
print(len(rows), seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_a_million_rows_open_in_two_seconds_and_flat_memory(tmp_path: Path) -> None:
    line = json.dumps({"instruction": "i" * 120, "input": "", "output": "o" * 120}).encode() + b"\n"
    path = write(tmp_path / "million.jsonl", line * 1_000_000)
    command = [sys.executable, "-c", _OPEN_IN_FLAT_MEMORY, str(path)]
    count, seconds, grown = map(float, subprocess.check_output(command).split())
    path.unlink()
    assert count == 1_000_000
    assert seconds < 2
    # 8 bytes for a line's beginning and 8 for its end, twice while they are joined, and a chunk; the file has 290 MB.
    assert grown < 80
