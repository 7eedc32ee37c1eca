"""Finds rows that begin alike, so that what they share goes through the model once."""

import hashlib
from collections.abc import Iterable

import numpy as np

from mmsft.types import Conversation, Ints, Media, Part, Turn


def group(beginnings: Iterable[bytes | None], most: int) -> Ints:
    """Returns a group's number for each row: equal for rows that begin alike.

    Args:
        beginnings: what `beginning` says of each row; None = it can't be read, and is by itself.
        most: rows in one group; what is left makes others.
    """
    known: dict[bytes, tuple[int, int]] = {}
    numbers: list[int] = []
    count = 0
    for key in beginnings:
        number, members = known.get(key, (count, 0)) if key is not None else (count, 0)
        if members == most:
            number, members = count, 0
        count = max(count, number + 1)
        numbers.append(number)
        if key is not None:
            known[key] = (number, members + 1)
    return np.array(numbers, np.int64)


def beginning(conversation: Conversation) -> bytes:
    """Returns a key of what a conversation begins with.

    That is the system's turns, and the first of the user's up to its last medium; where that has none, all of it.
    """
    said: list[object] = [conversation.tools, sorted(conversation.template_kwargs.items())]
    for turn in conversation.turns:
        if turn.role != "system":
            said.append((turn.role, _to_last_medium(turn)))
            break
        said.append((turn.role, turn.parts))
    return hashlib.sha256(repr(said).encode(errors="surrogateescape")).digest()


def _to_last_medium(turn: Turn) -> tuple[Part, ...]:
    last = max((index for index, part in enumerate(turn.parts) if isinstance(part, Media)), default=len(turn.parts) - 1)
    return turn.parts[: last + 1]
