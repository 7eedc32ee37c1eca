"""Prompt and completion: two texts, or two lists of turns."""

from collections.abc import Mapping
from typing import Any

from mmsft.data.formats.dialogue import read_dialogue
from mmsft.data.formats.fields import items, require
from mmsft.data.formats.turns import SCALE_KEYS, WEIGHT_KEYS, known_speaker
from mmsft.types import Conversation, Record


def prompt_completion(record: Record, row: str) -> Conversation:
    """Reads ``{"prompt": "…", "completion": "…"}``, of texts, or of turns as `messages` has them.

    Only the completion is learned: answers in the prompt are context.

    Raises:
        DataError: the row isn't of this form.
    """
    before = turns_of(require(record, ("prompt",), row), "user", f"{row}: prompt", weight=0)
    behind = turns_of(require(record, ("completion", "response"), row), "assistant", f"{row}: completion")
    return read_dialogue(record, row, [*before, *behind])


def turns_of(value: Any, role: str, where: str, weight: float | None = None) -> list[Any]:
    """Returns turns for `read_dialogue`.

    Args:
        value: a text, a turn, or a list of turns.
        role: who says a text.
        where: its place, for errors.
        weight: of turns that state none; None leaves it to `read_dialogue`.

    Raises:
        DataError: a list is empty.
    """
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list | tuple):
        return [{"role": role, "content": value}]
    if weight is None:
        return list(items(value, where))
    return [{**turn, "weight": weight} if _answers(turn) else turn for turn in items(value, where)]


def _answers(turn: Any) -> bool:
    """Tells an assistant's turn that states no weight."""
    stated = isinstance(turn, Mapping) and any(turn.get(name) is not None for name in (*WEIGHT_KEYS, *SCALE_KEYS))
    return not stated and known_speaker(turn) in ("assistant", "function_call")
