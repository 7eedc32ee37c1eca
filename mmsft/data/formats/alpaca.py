"""The Alpaca format: instruction, input and output, with an optional system text and history."""

from collections.abc import Iterator, Sequence
from typing import Any, Final

from mmsft.data.formats.dialogue import read_dialogue
from mmsft.data.formats.fields import find, listed, require, show, text, with_more
from mmsft.errors import DataError
from mmsft.types import Conversation, Record

ANSWER: Final = ("output", "response")
_ASKED: Final = ("instruction", "prompt", "query")


def alpaca(record: Record, row: str) -> Conversation:
    """Reads ``{"instruction": "…", "input": "…", "output": "…"}``; also ms-swift's ``query`` and ``response``.

    The user says the instruction and, where there is one, the input on the next line; the words of Alpaca's own prompt
    are the chat template's matter. A ``history`` of [question, answer] pairs comes first, and is learned too.

    Raises:
        DataError: the row isn't of this form.
    """
    return read_dialogue(record, row, [*asked(record, row), _turn("assistant", require(record, ANSWER, row))])


def asked(record: Record, row: str, names: Sequence[str] = _ASKED) -> list[dict[str, Any]]:
    """Returns the turns before the answer.

    Args:
        record: the row.
        row: its id.
        names: of the instruction's column.

    Raises:
        DataError: the row isn't of this form.
    """
    given = find(record, ("input",), row)
    # An instruction that is there and says nothing leaves all to the input.
    empty = any(name in record for name in names) and find(record, names, row) in (None, "")
    said = text(given, f"{row}: input") if empty and given not in (None, "") else with_more(record, names, "input", row)
    return [*_history(record, row), _turn("user", said)]


def _history(record: Record, row: str) -> Iterator[dict[str, Any]]:
    history = listed(find(record, ("history",), row) or [], f"{row}: history")
    if not isinstance(history, list | tuple):
        raise DataError(f"{row}: history must be a list of [question, answer] pairs, got {show(history)}")
    for number, pair in enumerate(history, 1):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise DataError(f"{row}: history {number} must be a pair [question, answer], got {show(pair)}")
        yield from (_turn("user", pair[0]), _turn("assistant", pair[1]))


def _turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}
