"""OpenAI's chat format: ``messages`` of role and content, with content parts, tools, tool calls and reasoning."""

from collections.abc import Callable

from mmsft.data.formats.dialogue import read_dialogue
from mmsft.data.formats.fields import require
from mmsft.data.formats.grounding import Boxes
from mmsft.data.formats.regions import Size
from mmsft.types import Conversation, Media, Record


def messages(
    record: Record, row: str, *, boxes: Boxes = "thousandths", size: Callable[[Media], Size] | None = None
) -> Conversation:
    """Reads ``{"messages": [{"role": "user", "content": …}, …], "tools": […]}``.

    A content is a text, in which tags like ``<image>`` stand for the files of the row's columns, or a list of parts:
    ``{"type": "text", "text": "…"}``, ``{"type": "image_url", "image_url": {"url": "…"}}``. In a part, text is only
    text; a part ``{"type": "image"}`` without a file takes the column's next one. The names and boxes of ``objects``
    stand where ``<ref-object>`` and ``<bbox>`` are.

    Args:
        record: the row.
        row: its id.
        boxes: written as ``[(103,500),(250,998)]`` in ``thousandths`` of the picture's sides or in ``pixels``, or as
            ``bins``, OFA's ``<bin_3>``.
        size: of a picture.

    Raises:
        DataError: the row isn't of this form.
    """
    return read_dialogue(record, row, require(record, ("messages",), row), boxes, size)
