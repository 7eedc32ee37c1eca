"""Orca's format: a question under a system message that says how to answer."""

from mmsft.data.formats.dialogue import read_dialogue
from mmsft.data.formats.fields import find, require
from mmsft.types import Conversation, Record


def orca(record: Record, row: str, *, erase: str | None = None) -> Conversation:
    """Reads ``{"system_prompt": "…", "question": "…", "response": "…"}``.

    Args:
        record: the row.
        row: its id.
        erase: stands in the place of each row's system message: Orca 2's prompt erasure (arXiv 2311.11045), which has
            the model find out by itself how to answer; an empty one leaves none.

    Raises:
        DataError: the row isn't of this form.
    """
    stated = find(record, ("system_prompt", "system"), row)
    system = stated if erase is None else erase
    others = {name: value for name, value in record.items() if name not in ("system_prompt", "system")}
    turns = [
        {"role": "user", "content": require(record, ("question",), row)},
        {"role": "assistant", "content": require(record, ("response",), row)},
    ]
    return read_dialogue({**others, "system": system}, row, turns)
