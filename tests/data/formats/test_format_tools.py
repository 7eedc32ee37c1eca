"""Tools, their calls and results, and reasoning, in the spellings of OpenAI and ShareGPT."""

from typing import Any

import pytest

from mmsft.data.formats import messages, sharegpt
from mmsft.errors import DataError
from mmsft.types import ToolCall, Turn
from tests.data.formats.rows import chat, said, talk

SCHEMA = {"name": "add", "parameters": {"type": "object"}}


def assistant(**fields: Any) -> Turn:
    row = {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", **fields}]}
    return messages(row, "r:1").turns[1]


@pytest.mark.parametrize(
    "call",
    [
        {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}},
        {"id": "c1", "function": {"name": "add", "arguments": {"a": 1}}},
        {"id": "c1", "name": "add", "arguments": {"a": 1}},
    ],
)
def test_the_spellings_of_a_call_are_one(call: dict[str, Any]) -> None:
    assert assistant(content=None, tool_calls=[call]).tool_calls == (ToolCall("add", {"a": 1}, "c1"),)


def test_a_turn_may_speak_and_call_twice() -> None:
    turn = assistant(content="wait", tool_calls=[{"name": "f", "arguments": ""}, {"name": "g", "arguments": None}])
    assert (turn.text, turn.tool_calls) == ("wait", (ToolCall("f", {}), ToolCall("g", {})))


def test_a_call_may_be_a_part_and_thinking_too() -> None:
    turn = assistant(
        content=[
            {"type": "reasoning", "value": "hm"},
            {"type": "text", "value": "So:"},
            {"type": "tool_call", "value": '{"name": "f", "arguments": {}}'},
        ]
    )
    assert (turn.reasoning, turn.text, turn.tool_calls) == ("hm", "So:", (ToolCall("f", {}),))


def test_sharegpt_calls_and_observations_are_turns() -> None:
    row = talk(
        ("human", "Q"),
        ("function_call", '<think>hm</think>[{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]'),
        ("observation", {"sum": 3}),
        ("gpt", "3"),
        tools='[{"name": "add", "parameters": {"type": "object"}}]',
    )
    read = sharegpt(row, "r:1")
    assert said(read) == [("user", ["Q"]), ("assistant", []), ("tool", ['{"sum": 3}']), ("assistant", ["3"])]
    assert read.turns[1].tool_calls == (ToolCall("f", {"a": 1}), ToolCall("g", {}))
    assert read.turns[1].reasoning == "hm"
    assert read.tools == ({"type": "function", "function": SCHEMA},)


@pytest.mark.parametrize("tools", [None, "", [], "[]"])
def test_a_row_without_tools_has_none(tools: object) -> None:
    assert messages({**chat(("user", "Q"), ("assistant", "A")), "tools": tools}, "r:1").tools == ()


def test_a_result_is_named_after_its_function() -> None:
    row = {
        "messages": [
            {"role": "user", "content": "Q"},
            {"role": "assistant", "tool_calls": [{"id": "c1", "name": "add"}, {"id": "c2", "name": "sub"}]},
            {"role": "tool", "tool_call_id": "c2", "content": "1"},
            {"role": "tool", "name": "add", "content": ""},
            {"role": "tool", "content": [1, 2]},
            {"role": "assistant", "content": "A"},
        ]
    }
    results = messages(row, "r:1").turns[2:5]
    assert [(turn.name, turn.text) for turn in results] == [("sub", "1"), ("add", ""), (None, "[1, 2]")]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"tool_calls": "[{"}, "not valid JSON"),
        ({"tool_calls": 3}, "expected a call"),
        ({"tool_calls": [3]}, "expected an object"),
        ({"tool_calls": [{"arguments": {}}]}, "no 'name'"),
        ({"tool_calls": [{"name": "f", "arguments": "[1]"}]}, "arguments of f: expected an object"),
        ({"tool_calls": [{"name": 3}]}, "a function's name must be a string"),
        ({"tool_calls": [{"name": "f", "id": 3}]}, "the id of a call of f"),
        ({"tool_calls": []}, "no 'content' or 'value'"),
        ({"content": "<think>hm"}, "opens <think> and doesn't close it"),
        ({"content": "<think>hm</think>"}, "is empty"),
        ({"content": "<think>hm</think>A", "reasoning": "other"}, "its reasoning is given twice"),
        ({"content": [{"type": "text", "text": "A"}, {"type": "reasoning", "text": "hm"}]}, "put the reasoning first"),
        ({"content": [{"type": "reasoning", "text": "hm"}] * 2}, "two parts of reasoning"),
    ],
)
def test_what_cannot_be_read_as_call_or_thinking_is_named(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=rf"^r:1: turn 2 of 2 \(assistant\).*{says}"):
        assistant(**fields)


def test_only_an_assistant_reasons() -> None:
    with pytest.raises(DataError, match="only an assistant reasons"):
        messages(chat(("user", [{"type": "reasoning", "text": "hm"}]), ("assistant", "A")), "r:1")


@pytest.mark.parametrize(
    ("fields", "reasoning", "answer"),
    [
        ({"content": "A", "reasoning_content": "hm"}, "hm", "A"),
        ({"content": "A", "reasoning": "hm"}, "hm", "A"),
        ({"content": "A", "thinking": ""}, None, "A"),
        ({"content": "<think>\nhm\n</think>\n\nA"}, "hm", "A"),
        ({"content": [{"type": "text", "text": "<think>hm</think>A"}]}, "hm", "A"),
        ({"content": "<think>\n\n</think>\n\nA"}, "", "A"),
        ({"content": "write <think> so"}, None, "write <think> so"),
    ],
)
def test_thinking_is_kept_apart_from_the_answer(fields: dict[str, Any], reasoning: str | None, answer: str) -> None:
    turn = assistant(**fields)
    assert (turn.reasoning, turn.text) == (reasoning, answer)


def test_a_tag_inside_of_thinking_is_no_medium() -> None:
    assert assistant(content="<think>an <image>?</think>A").reasoning == "an <image>?"


def test_variables_of_the_template_are_the_rows() -> None:
    row = chat(("user", "Q"), ("assistant", "A"), chat_template_kwargs={"enable_thinking": False})
    assert messages(row, "r:1").template_kwargs == {"enable_thinking": False}
