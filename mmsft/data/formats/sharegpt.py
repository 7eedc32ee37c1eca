"""The ShareGPT format: ``conversations`` of human, gpt, function_call, observation and system."""

from collections.abc import Mapping
from typing import Any, Final

from mmsft.data.formats.dialogue import read_dialogue
from mmsft.data.formats.fields import require
from mmsft.data.formats.turns import CONTENT_KEYS, ROLE_KEYS
from mmsft.types import Conversation, Record

_ASKS: Final = ("human", "user")
_ANSWERS: Final = ("assistant", "gpt", "bot")


def sharegpt(record: Record, row: str) -> Conversation:
    """Reads ``{"conversations": [{"from": "human", "value": "…"}, …], "system": "…", "tools": "[…]"}``.

    Turns that are plain texts, as LIMA has them, are the human's and the assistant's in turn. An object without a
    speaker is a question with its answer, as ms-swift has it: ``{"human": "…", "assistant": "…"}``.

    Raises:
        DataError: the row isn't of this form.
    """
    listed = require(record, ("conversations", "conversation", "messages"), row)
    if isinstance(listed, list | tuple) and listed and all(isinstance(turn, str) for turn in listed):
        listed = [{"from": ("human", "gpt")[number % 2], "value": turn} for number, turn in enumerate(listed)]
    elif isinstance(listed, list | tuple) and any(map(_is_pair, listed)):
        listed = [turn for item in listed for turn in (_parted(item) if _is_pair(item) else [item])]
    return read_dialogue(record, row, listed)


def _is_pair(item: Any) -> bool:
    return (
        isinstance(item, Mapping)
        and not any(key in item for key in (*ROLE_KEYS, *CONTENT_KEYS))
        and all(any(name in item for name in names) for names in (_ASKS, _ANSWERS))
    )


def _parted(item: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"from": name, "value": item[name]} for names in (_ASKS, _ANSWERS) for name in names if name in item]
