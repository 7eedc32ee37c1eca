"""CSV and TSV files: quotes, line breaks inside of them, and rows of the wrong width."""

import csv
import pickle
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsft.data.delimited import _find_records
from mmsft.data.files import RandomFile
from mmsft.data.sources import open_rows
from mmsft.errors import DataError


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def test_values_are_text_under_the_names_of_the_header(tmp_path: Path) -> None:
    rows = open_rows(write(tmp_path / "a.csv", '\ufeffid,said\n1,"a ""b"", c"\n\n2,"two\nlines"\r\n'))
    assert [rows[index] for index in range(len(rows))] == [
        {"id": "1", "said": 'a "b", c'},
        {"id": "2", "said": "two\nlines"},
    ]
    assert rows.row_id(1) == "a.csv:2"
    assert pickle.loads(pickle.dumps(rows))[1] == rows[1]


def test_tabs_delimit_where_the_name_says_so(tmp_path: Path) -> None:
    assert open_rows(write(tmp_path / "a.tsv", "id\tsaid\n1\ta, b\n"))[0] == {"id": "1", "said": "a, b"}


def test_a_row_of_the_wrong_width_is_alone_in_being_broken(tmp_path: Path) -> None:
    rows = open_rows(write(tmp_path / "a.csv", "a,b\n1,2\n3\n4,5\n"))
    with pytest.raises(DataError, match=r"a.csv:2: 1 values for 2 columns \(a, b\)"):
        rows[1]
    assert rows[2] == {"a": "4", "b": "5"}


@pytest.mark.parametrize(
    ("text", "says"), [("", "is empty"), ("a,b\n", "has no rows"), ("a,a\n1,2\n", "names 'a' twice")]
)
def test_a_file_without_rows_or_with_an_ambiguous_header_is_refused(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        open_rows(write(tmp_path / "a.csv", text))


def test_what_is_not_utf8_is_the_rows_failure(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"a,b\n1,\xff\n3,4\n")
    rows = open_rows(path)
    with pytest.raises(DataError, match=r"a.csv:1: byte 2 isn't UTF-8"):
        rows[0]
    assert rows[1] == {"a": "3", "b": "4"}


@settings(max_examples=100, deadline=None)
@given(
    table=st.lists(st.tuples(st.text("ab,\"\n '", max_size=5), st.text('x\ny"', max_size=4)), min_size=1, max_size=6)
)
def test_what_the_csv_module_writes_is_read_back_whatever_the_chunk(
    tmp_path_factory: pytest.TempPathFactory, table: list[tuple[str, str]]
) -> None:
    out = StringIO()
    csv.writer(out, quoting=csv.QUOTE_ALL).writerows([("a", "b"), *table])
    path = write(tmp_path_factory.mktemp("csv") / "a.csv", out.getvalue())
    rows = open_rows(path)
    assert [tuple(rows[index].values()) for index in range(len(rows))] == table
    whole = _find_records(RandomFile(path), 0)
    for chunk in (1, 3, 7):
        pieces = _find_records(RandomFile(path), 0, chunk)
        assert pieces.starts.tolist() == whole.starts.tolist()
        assert pieces.ends.tolist() == whole.ends.tolist()
