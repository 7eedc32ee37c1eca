"""The LLaVA format: ``conversations`` of human and gpt, and the image that the first question's tag stands for."""

from mmsft.data.formats.dialogue import read_dialogue
from mmsft.data.formats.fields import require
from mmsft.types import Conversation, Record


def llava(record: Record, row: str) -> Conversation:
    """Reads ``{"image": "a.jpg", "conversations": [{"from": "human", "value": "<image> What is this?"}, …]}``.

    Raises:
        DataError: the row isn't of this form.
    """
    return read_dialogue(record, row, require(record, ("conversations",), row))
