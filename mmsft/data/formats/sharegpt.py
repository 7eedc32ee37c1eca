"""The ShareGPT format: ``conversations`` of human, gpt, function_call, observation and system."""

from mmsft.data.formats.dialogue import read_dialogue
from mmsft.data.formats.fields import require
from mmsft.types import Conversation, Record


def sharegpt(record: Record, row: str) -> Conversation:
    """Reads ``{"conversations": [{"from": "human", "value": "…"}, …], "system": "…", "tools": "[…]"}``.

    Turns that are plain texts, as LIMA has them, are the human's and the assistant's in turn.

    Raises:
        DataError: the row isn't of this form.
    """
    listed = require(record, ("conversations", "conversation", "messages"), row)
    if isinstance(listed, list | tuple) and listed and all(isinstance(turn, str) for turn in listed):
        listed = [{"from": ("human", "gpt")[number % 2], "value": turn} for number, turn in enumerate(listed)]
    return read_dialogue(record, row, listed)
