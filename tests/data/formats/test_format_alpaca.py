"""Alpaca rows: instruction, input, output and their variants."""

from typing import Any

import pytest

from mmsft.data.formats import alpaca
from mmsft.errors import DataError
from tests.data.formats.rows import said


@pytest.mark.parametrize(
    ("row", "question"),
    [
        ({"instruction": "Add.", "input": "1, 2", "output": "3"}, "Add.\n1, 2"),
        ({"instruction": "Add.", "input": "", "output": "3"}, "Add."),
        ({"instruction": "Add.", "input": None, "output": 3}, "Add."),
        ({"instruction": "Add.", "input": 7, "output": "3"}, "Add.\n7"),
        ({"query": "Add.", "input": "1, 2", "response": "3"}, "Add.\n1, 2"),
    ],
)
def test_instruction_and_input_are_one_question(row: dict[str, Any], question: str) -> None:
    assert said(alpaca(row, "r:1")) == [("user", [question]), ("assistant", ["3"])]


def test_system_and_history_come_first() -> None:
    row = {"instruction": "c", "output": "d", "system": "s", "history": [["a", "b"]]}
    read = alpaca(row, "r:1")
    assert "".join(turn.text for turn in read.turns) == "sabcd"
    assert [turn.role for turn in read.turns] == ["system", "user", "assistant", "user", "assistant"]


def test_pictures_stand_where_their_tags_do() -> None:
    row = {"instruction": "<image>What?", "input": "<image>", "output": "A", "images": ["a.png", "b.png"]}
    assert said(alpaca(row, "r:1"))[0] == ("user", [("image", "a.png"), "What?\n", ("image", "b.png")])


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"input": "a", "output": "b"}, "no 'instruction' or 'prompt'"),
        ({"instruction": "a"}, "no 'output' or 'response'"),
        ({"instruction": "a", "output": ""}, r"turn 2 of 2 \(assistant\) is empty"),
        ({"instruction": "", "output": "b"}, r"turn 1 of 2 \(user\) is empty"),
        ({"instruction": "a", "output": False}, "expected text, got bool False"),
        ({"instruction": "a", "output": ["b"]}, "expected an object"),
        ({"instruction": ["a"], "output": "b"}, "instruction: expected text"),
        ({"instruction": "a", "output": "b", "history": "h"}, "history must be a list"),
        ({"instruction": "a", "output": "b", "history": [["q"]]}, "history 1 must be a pair"),
        ({"instruction": "a", "output": "b", "response": "c"}, "'output' and 'response' differ"),
    ],
)
def test_what_is_missing_or_wrong_is_named(row: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=f"^r:1.*{says}"):
        alpaca(row, "r:1")
