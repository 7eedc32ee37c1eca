"""The table of formats, and that no row, however odd, raises anything but a DataError."""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsft.data.formats import FORMATS, format_named, with_options
from mmsft.data.formats.media_tags import read_media
from mmsft.data.formats.turns import SPEAKERS
from mmsft.errors import ConfigError, DataError
from mmsft.types import Conversation, Record, Turn
from tests.data.formats.rows import said
from tests.data.formats.test_fixtures import GIVEN, READABLE

CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
PARTS = [
    {"type": "reasoning", "value": "hm"},
    {"type": "image_url", "image_url": {"url": "a.png"}},
    {"type": "image"},
    {"type": "text", "text": "Q"},
    {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
    {"type": "tool_call", "value": '{"name": "f"}'},
]
CHAT = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "<image>Q", "weight": 0.5, "name": "me"},
    {"role": "assistant", "content": PARTS, "reasoning": None, "tool_calls": [CALL], "loss": True},
    {"role": "tool", "content": {"a": "<touch>"}, "tool_call_id": "c1"},
    {"role": "function_call", "content": '{"name": "f", "arguments": {}}'},
    {"role": "assistant", "content": "<think>a</think>b", "tool_calls": None},
]
COLUMNS = {
    "images": [{"path": "a.png", "bytes": None}, "b.png"],
    "media": {"touch": ["t.npy"]},
    "system": "S",
    "tools": [{"name": "f"}],
    "chat_template_kwargs": {"a": 1},
}
ANSWERS = [
    {"message_id": "c", "parent_id": "b", "role": "assistant", "text": "yes", "deleted": False, "replies": []},
    {"message_id": "d", "parent_id": "b", "role": "assistant", "text": "no", "review_result": True},
]
OASST = {"message_id": "a", "parent_id": None, "role": "prompter", "text": "Who?", "replies": [
    {"message_id": "e", "role": "assistant", "text": "me", "replies": [
        {"message_id": "b", "role": "prompter", "text": "Sure?", "rank": 0, "replies": ANSWERS}]}]}  # fmt: skip
ROWS: dict[str, dict[str, Any]] = {
    "messages": {"messages": CHAT, **COLUMNS},
    "openassistant": {"message_tree_id": "a", "prompt": OASST},
    "sharegpt": {"conversations": CHAT, **COLUMNS},
    "llava": {"conversations": CHAT, **COLUMNS},
    "alpaca": {"instruction": "<image>", "input": "<image><touch>", "output": "A", "history": [["q", "a"]], **COLUMNS},
}
ROWS |= {
    name: next(case["row"] for other, _, case in READABLE if other == name) for name in FORMATS if name not in ROWS
}
odd = st.none() | st.booleans() | st.integers() | st.floats() | st.binary(max_size=2) | st.text(max_size=2)
odd |= st.sampled_from(
    [*SPEAKERS, "<image>", "<touch>", "<think>", "[]", "[{", "text", "", {}, [], [[]], {"type": "text"}]
)


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yields the place of each value inside of a row."""
    if path:
        yield path
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield from paths(inner, (*path, key))


def damage(record: dict[str, Any], path: tuple[Any, ...], value: Any, remove: bool) -> None:
    """Changes what stands at a path, unless an earlier change took it away."""
    at: Any = record
    with contextlib.suppress(KeyError, IndexError, TypeError):
        for key in path[:-1]:
            at = at[key]
        if remove:
            del at[path[-1]]
        else:
            at[path[-1]] = value


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_damaged_row_is_a_conversation_or_a_data_error_that_names_it(name: str, data: st.DataObject) -> None:
    record = copy.deepcopy(ROWS[name])
    places = st.sampled_from(list(paths(record)))
    for _ in range(data.draw(st.integers(0, 3))):
        damage(record, data.draw(places), data.draw(odd), data.draw(st.booleans()))
    try:
        read = with_options(name, {}, GIVEN)(record, "odd.jsonl:3")
    except DataError as error:
        assert str(error).startswith("odd.jsonl:3")  # noqa: PT017 - either outcome is fine
    else:
        assert read.id == "odd.jsonl:3"
        assert any(turn.role == "assistant" for turn in read.turns)
        assert all(turn.parts or turn.tool_calls for turn in read.turns if turn.role in {"user", "assistant"})


@pytest.mark.parametrize("name", FORMATS)
def test_the_rows_that_are_damaged_are_sound_otherwise(name: str) -> None:
    assert len(with_options(name, {}, GIVEN)(ROWS[name], "r:1").turns) >= 2


def one_line(record: Record, row: str) -> Conversation:
    return Conversation(row, (Turn("assistant", ()),), tags={"n": str(record["n"])})


def test_a_format_of_the_users_is_named_by_module_and_function() -> None:
    assert format_named(f"{__name__}:one_line")({"n": 1}, "r:1").tags == {"n": "1"}
    assert format_named("llava") is FORMATS["llava"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("lava", r"unknown format 'lava' \(did you mean 'llava'\?\)"),
        ("no_such_package.x:y", "no_such_package.x can't be imported"),
        (":y", "can't be imported"),
        (f"{__name__}:one_lin", r"has no 'one_lin' \(did you mean 'one_line'\?\)"),
        (f"{__name__}:COLUMNS", "COLUMNS': not a function but"),
    ],
)
def test_an_unknown_format_is_a_config_error_with_a_suggestion(name: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        format_named(name)


def test_a_row_as_parquet_fills_it_up_with_nulls_reads_like_the_row_itself() -> None:
    full = {
        "messages": [
            {
                "role": "user",
                "content": "<image>Q",
                "tool_calls": None,
                "name": None,
                "reasoning": None,
                "weight": None,
            },
            {"role": "assistant", "content": "A", "tool_calls": None, "name": None, "reasoning": None, "weight": None},
        ],
        "images": [{"bytes": b"x", "path": "a.png"}],
        "tools": None,
        "system": None,
    }
    assert said(FORMATS["messages"](full, "r:1")) == [("user", [("image", b"x"), "Q"]), ("assistant", ["A"])]


@pytest.mark.parametrize("value", [[1, 2], {"s": 1}, "1", True, float("nan")])
def test_a_part_of_a_medium_is_named_by_numbers(value: object) -> None:
    with pytest.raises(DataError, match=r"^here: 'start' must be a finite number"):
        read_media("video", {"path": "v.mp4", "start": value}, "here")
