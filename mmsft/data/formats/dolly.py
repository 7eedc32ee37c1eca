"""Dolly's format: an instruction, a context to it, the response, and a category."""

from dataclasses import replace

from mmsft.data.formats.dialogue import read_dialogue
from mmsft.data.formats.fields import find, require, text, with_more
from mmsft.types import Conversation, Record


def dolly(record: Record, row: str) -> Conversation:
    """Reads ``{"instruction": "…", "context": "…", "response": "…", "category": "closed_qa"}``.

    The context follows the instruction on a line of its own, and an empty one is left out. The category becomes a tag,
    whatever it is.

    Raises:
        DataError: the row isn't of this form.
    """
    question = with_more(record, ("instruction",), "context", row)
    turns = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": require(record, ("response",), row)},
    ]
    conversation = read_dialogue(record, row, turns)
    category = find(record, ("category",), row)
    return conversation if category is None else replace(conversation, tags={"category": text(category, row)})
