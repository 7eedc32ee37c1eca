"""The ShareGPT format: ``conversations`` of human, gpt, function_call, observation and system."""

from mmsft.data.formats.dialogue import read_dialogue
from mmsft.data.formats.fields import require
from mmsft.types import Conversation, Record


def sharegpt(record: Record, row: str) -> Conversation:
    """Reads ``{"conversations": [{"from": "human", "value": "…"}, …], "system": "…", "tools": "[…]"}``.

    Raises:
        DataError: the row isn't of this form.
    """
    return read_dialogue(record, row, require(record, ("conversations", "conversation", "messages"), row))
