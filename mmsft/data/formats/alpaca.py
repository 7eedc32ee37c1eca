"""The Alpaca format: instruction, input and output, with an optional system text and history."""

from collections.abc import Iterator
from typing import Any

from mmsft.data.formats.dialogue import read_dialogue
from mmsft.data.formats.fields import find, require, show, with_more
from mmsft.errors import DataError
from mmsft.types import Conversation, Record


def alpaca(record: Record, row: str) -> Conversation:
    """Reads ``{"instruction": "…", "input": "…", "output": "…"}``; also ms-swift's ``query`` and ``response``.

    The user says the instruction and, where there is one, the input on the next line; the words of Alpaca's own prompt
    are the chat template's matter. A ``history`` of [question, answer] pairs comes first, and is learned too.

    Raises:
        DataError: the row isn't of this form.
    """
    question = with_more(record, ("instruction", "prompt", "query"), "input", row)
    turns = [*_history(record, row), _turn("user", question)]
    return read_dialogue(record, row, [*turns, _turn("assistant", require(record, ("output", "response"), row))])


def _history(record: Record, row: str) -> Iterator[dict[str, Any]]:
    history = find(record, ("history",), row) or []
    if not isinstance(history, list | tuple):
        raise DataError(f"{row}: history must be a list of [question, answer] pairs, got {show(history)}")
    for number, pair in enumerate(history, 1):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise DataError(f"{row}: history {number} must be a pair [question, answer], got {show(pair)}")
        yield from (_turn("user", pair[0]), _turn("assistant", pair[1]))


def _turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}
