"""The scanner of JSON arrays agrees with json.loads, wherever its chunks begin."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mmsft.data.files import RandomFile
from mmsft.data.jsonarray import find_elements
from mmsft.data.jsonrows import Spans
from mmsft.errors import DataError

# Texts made of what could mislead the scanner.
text = st.text(alphabet='\\"{}[],: \nü\N{GRINNING FACE}a', max_size=12)
value = st.recursive(
    st.none() | st.booleans() | st.integers() | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
in_tmp_path = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def scan(path: Path, data: bytes, chunk: int) -> Spans:
    path.write_bytes(data)
    return find_elements(RandomFile(path), data.index(b"["), chunk)


@in_tmp_path
@given(
    rows=st.lists(value, max_size=5),
    chunk=st.integers(1, 40),
    indent=st.sampled_from([None, 0, 2]),
    ascii_only=st.booleans(),
)
@example(rows=["\\", '\\"', '\\\\"', "]"], chunk=1, indent=None, ascii_only=True)
@example(rows=["\\" * 9 + '"', {"\\": "\\\\"}], chunk=3, indent=None, ascii_only=True)
def test_elements_are_those_of_json_loads(
    tmp_path: Path, rows: list[Any], chunk: int, indent: int | None, ascii_only: bool
) -> None:
    data = b" \n" + json.dumps(rows, indent=indent, ensure_ascii=ascii_only).encode() + b" \n"
    spans = scan(tmp_path / "a.json", data, chunk)
    assert [json.loads(data[a:b]) for a, b in zip(spans.starts, spans.ends, strict=True)] == rows


@in_tmp_path
@given(rows=st.lists(value, min_size=1, max_size=3), chunk=st.integers(1, 40), cut=st.floats(0, 1, exclude_max=True))
def test_a_cut_array_is_never_taken_for_a_whole_one(tmp_path: Path, rows: list[Any], chunk: int, cut: float) -> None:
    data = json.dumps(rows).encode()
    short = data[: 1 + int(cut * (len(data) - 1))]
    with pytest.raises(DataError, match="isn't closed"):
        scan(tmp_path / "a.json", short, chunk)


@in_tmp_path
@given(chunk=st.integers(1, 12), rest=st.sampled_from([b"x", b" \n]", b"[]", b" \n\n {}"]))
def test_what_follows_an_array_is_refused(tmp_path: Path, chunk: int, rest: bytes) -> None:
    with pytest.raises(DataError, match="the array ends at byte 4, but"):
        scan(tmp_path / "a.json", b"[{}]" + rest, chunk)
