"""Baize's format: a self-chat as one text, with a mark before each speaker's turn."""

import re
from itertools import pairwise
from typing import Final

from mmsft.data.formats.dialogue import read_dialogue
from mmsft.data.formats.fields import require, show, text
from mmsft.errors import DataError
from mmsft.types import Conversation, Record

_MARKS: Final = {"Human": "user", "AI": "assistant"}
_MARK: Final = re.compile(r"\[\|(Human|AI)\|\]")


def baize(record: Record, row: str) -> Conversation:
    """Reads ``{"input": "The conversation … [|Human|] Hello [|AI|] Hi! [|Human|]"}``.

    What stands before the first mark is the system's text. A last turn that says nothing is how the files end, and is
    left out. Baize itself learns all of the text: ``learn: all``.

    Raises:
        DataError: the row isn't of this form, or its speakers don't take turns.
    """
    said = text(require(record, ("input",), row), f"{row}: input")
    before, *marked = _MARK.split(said)
    if not marked:
        raise DataError(f"{row}: no [|Human|] or [|AI|] in the text {show(said)}; a row of Baize has them")
    turns = [
        {"role": _MARKS[who], "content": what.strip()} for who, what in zip(marked[::2], marked[1::2], strict=True)
    ]
    if not turns[-1]["content"]:
        turns.pop()
    for number, (one, other) in enumerate(pairwise(turns), 2):
        if one["role"] == other["role"]:
            raise DataError(f"{row}: turn {number} is the {other['role']}'s, as is the one before it; mend the marks")
    others = {name: value for name, value in record.items() if name not in ("input", "topic")}
    return read_dialogue({**others, "system": before.strip()}, row, turns)
