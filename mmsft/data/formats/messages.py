"""OpenAI's chat format: ``messages`` of role and content, with content parts, tools, tool calls and reasoning."""

from mmsft.data.formats.dialogue import read_dialogue
from mmsft.data.formats.fields import require
from mmsft.types import Conversation, Record


def messages(record: Record, row: str) -> Conversation:
    """Reads ``{"messages": [{"role": "user", "content": …}, …], "tools": […]}``.

    A content is a text, in which tags like ``<image>`` stand for the files of the row's columns, or a list of parts:
    ``{"type": "text", "text": "…"}``, ``{"type": "image_url", "image_url": {"url": "…"}}``. In a part, text is only
    text; a part ``{"type": "image"}`` without a file takes the column's next one.

    Raises:
        DataError: the row isn't of this form.
    """
    return read_dialogue(record, row, require(record, ("messages",), row))
