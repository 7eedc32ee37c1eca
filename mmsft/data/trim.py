"""Cuts a conversation that is too long behind one of its answers, so that what is left of it is whole."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from mmsft.types import PREVIOUS, ROOT, Conversation


def trimmed(
    conversation: Conversation, long: Mapping[tuple[int, ...], Sequence[int]], fits: Callable[[Conversation], bool]
) -> Conversation:
    """Returns the conversation without turns at the ends of threads that are too long.

    A thread keeps as many answers as fit, each with all that comes before it. Where not even the first one does, it
    stays as it is: there is nothing to cut.

    Args:
        conversation: a tree of turns.
        long: the paths of the threads that are too long, each with the turns of it that are learned.
        fits: tells whether a conversation of one thread is short enough.
    """
    kept: set[int] = set()
    for path in conversation.threads():
        learned = next((turns for begin, turns in long.items() if path[: len(begin)] == begin), None)
        kept.update(path if learned is None else _fitting(conversation, path, learned, fits))
    numbers = {index: number for number, index in enumerate(sorted(kept))}
    parents = {index: conversation.parent(index) for index in numbers}
    turns = [
        replace(conversation.turns[index], parent=ROOT if parents[index] == ROOT else numbers[parents[index]])
        for index in numbers
    ]
    return replace(conversation, turns=tuple(turns))


def _fitting(
    conversation: Conversation, path: Sequence[int], turns: Sequence[int], fits: Callable[[Conversation], bool]
) -> Sequence[int]:
    """Returns the path up to the last answer at which it is short enough."""
    low, high = 0, len(turns) - 1  # the number of answers that are known to fit, and that may
    while low < high:
        middle = (low + high + 1) // 2
        begin = path[: path.index(turns[middle - 1]) + 1]
        chain = tuple(replace(conversation.turns[index], parent=PREVIOUS) for index in begin)
        low, high = (middle, high) if fits(replace(conversation, turns=chain)) else (low, middle - 1)
    return path[: path.index(turns[low - 1]) + 1] if low else path
