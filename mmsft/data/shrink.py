"""Reads the media of a thread that is too long to fewer tokens, so that it fits whole."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

from mmsft.data.media_reader import Reading
from mmsft.types import Conversation, Media, Part

_Ladders: TypeAlias = Mapping[Media, Sequence[Reading]]
"""By medium how it can be read, each reading with fewer tokens than the one before."""


@dataclass(frozen=True, slots=True)
class Shrunk:
    """A conversation with some of its media read smaller.

    Attributes:
        conversation: with the readings in the place of the media.
        sizes: the media that are read smaller, each with its reading as it was and as it is.
        refused: path of a thread that doesn't fit all the same → why.
    """

    conversation: Conversation
    sizes: Sequence[tuple[Reading, Reading]]
    refused: Mapping[tuple[int, ...], str]

    def note(self) -> str:
        """Returns what the ledger is to say: the sizes in all, and those of the largest medium."""
        before, after = (sum(reading.tokens for reading in column) for column in zip(*self.sizes, strict=True))
        was, now = max(self.sizes, key=lambda size: size[0].tokens)
        return (
            f"{len(self.sizes)} of its media are read smaller, {before:,} → {after:,} tokens, "
            f"{was.media} {was.tokens:,} → {now.tokens:,}"
        )


def shrunk(
    conversation: Conversation,
    paths: Sequence[tuple[int, ...]],
    readings: Callable[[Media], Sequence[Reading]],
    measure: Callable[[Conversation], int],
    length: int,
) -> Shrunk:
    """Returns the conversation with the media along some paths read as large as fits.

    Of the media of one thread none then takes more tokens than a number, the largest with which the thread fits; those
    that take no more stay as they are. Where a thread doesn't fit with all of its media at their smallest either,
    nothing is gained by it, and nothing is changed for it.

    Args:
        conversation: a tree of turns.
        paths: threads that are too long.
        readings: how a medium can be read, as it is first, each with fewer tokens than the one before.
        measure: tokens of a conversation of one thread.
        length: most tokens of a thread.
    """
    media = {path: [medium for index in path for medium in conversation.turns[index].media] for path in paths}
    whole = {medium: readings(medium) for shown in media.values() for medium in shown}
    left = dict(whole)
    refused = {}
    for path, shown in media.items():
        ladders = {medium: left[medium] for medium in shown}
        tokens = partial(_measured, conversation.chain(path), measure)
        caps = sorted({reading.tokens for ladder in ladders.values() for reading in ladder})
        low, high = -1, len(caps) - 1  # the last cap that is known to fit, and the last that may
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if tokens(_under(ladders, caps[middle])) <= length else (low, middle - 1)
        if low >= 0:
            left |= _under(ladders, caps[low])
        else:
            refused[path] = _why({medium: whole[medium] for medium in shown}, tokens(_under(ladders, 0)))
    changed = [medium for medium in whole if left[medium] != whole[medium]]
    sizes = [(whole[medium][0], left[medium][0]) for medium in changed]
    return Shrunk(_read(conversation, left), sizes, refused)


def _under(ladders: _Ladders, cap: int) -> _Ladders:
    """Returns what is left of ladders from the first reading on that takes no more tokens, or the last one."""
    steps = {
        medium: next((step for step, reading in enumerate(ladder) if reading.tokens <= cap), len(ladder) - 1)
        for medium, ladder in ladders.items()
    }
    return {medium: ladders[medium][step:] for medium, step in steps.items()}


def _measured(chain: Conversation, measure: Callable[[Conversation], int], ladders: _Ladders) -> int:
    return measure(_read(chain, ladders))


def _read(conversation: Conversation, ladders: _Ladders) -> Conversation:
    """Returns the conversation with each medium as the first reading of its ladder has it."""

    def reading(part: Part) -> Part:
        return ladders[part][0].media if isinstance(part, Media) and part in ladders else part

    turns = tuple(replace(turn, parts=tuple(map(reading, turn.parts))) for turn in conversation.turns)
    return replace(conversation, turns=turns)


def _why(ladders: _Ladders, tokens: int) -> str:
    """Says why a thread doesn't fit, which has so many tokens at least."""
    if not ladders:
        return "it has no media to read smaller"
    if any(len(ladder) > 1 for ladder in ladders.values()):
        return f"with its media read as small as they can be it has {tokens}"
    return f"its {', '.join(sorted({medium.modality for medium in ladders}))} media can't be read smaller"
