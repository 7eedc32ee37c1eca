"""Finds rows that begin alike, so that what they share goes through the model once."""

import hashlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from mmsft.data.order import Numbers, number_type
from mmsft.types import Conversation, Media, Text, ToolCall


def group(keys: NDArray[np.uint64], most: int) -> Numbers:
    """Returns a group's number for each row: equal for rows of one key, counted as their first rows come.

    Args:
        keys: [n], equal for rows that begin alike.
        most: rows in one group; what is left makes others.
    """
    kind = number_type(len(keys))
    by_key = np.argsort(keys, kind="stable").astype(kind)
    ordered, index = keys[by_key], np.arange(len(keys), dtype=kind)
    new = np.ones(len(keys), bool)
    new[1:] = ordered[1:] != ordered[:-1]
    new = (index - np.maximum.accumulate(np.where(new, index, 0))) % most == 0
    first = by_key[new]
    number = np.empty_like(first)
    number[np.argsort(first)] = index[: len(first)]
    groups = np.empty_like(by_key)
    groups[by_key] = number[np.cumsum(new, dtype=kind) - 1]
    return groups


def tell(groups: Numbers) -> str:
    """Says how many rows are together with another one."""
    sizes = np.bincount(groups)
    several = sizes[sizes > 1]
    if not len(several):
        return "no two rows begin alike, so that `join` spares nothing"
    rows, most = int(several.sum()), int(several.max())
    return f"{rows:,} of {len(groups):,} rows begin like another one, in {len(several):,} groups of at most {most}"


def beginning(conversation: Conversation) -> tuple[object, ...]:
    """Returns what conversations that begin alike have in common.

    That is all up to the end of the user's first turn; where there are media in it, up to the last of them. A longer
    one would keep apart several answers to one question, a shorter one would bring together what shares a few words.
    How much is shared in the end, the tokens decide.
    """
    said: list[object] = []
    end = None
    for turn in conversation.turns:
        said.append((turn.role, turn.name, turn.reasoning, turn.tool_calls))
        for part in turn.parts:
            said.append(part)
            if isinstance(part, Media):
                end = len(said)
        if turn.role == "user":
            break
    return conversation.tools, conversation.template_kwargs, *said[:end]


def key(value: object) -> int:
    """Returns 64 bits that stand for a value, in which the order of a mapping's names doesn't count.

    Should two values have one key, rows stand together that share less than it seemed, and that is all.
    """
    text = repr(plain(value)).encode(errors="backslashreplace")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def plain(value: object) -> object:
    """Returns a value of which `repr` shows all, and not a picture's bytes one by one."""
    match value:
        case str() | Text() | None:
            return value
        case tuple() | list():
            return [plain(item) for item in value]
        case Media(modality, ref, options):
            return modality, plain(ref), plain(options)
        case ToolCall(name, arguments, id):
            return name, plain(arguments), id
        case bytes():
            return hashlib.blake2b(value).digest()
        case Mapping():
            return sorted((str(name), repr(plain(item))) for name, item in value.items())
        case _:
            return value
