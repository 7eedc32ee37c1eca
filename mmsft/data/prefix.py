"""What trees begin with in common, a system message say: within a micro-batch it goes through the model once."""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np

from mmsft.types import Encoded, Ints, Segment

LEAST: Final = 16
"""Tokens in common that are worth sharing; fewer would save less than looking them up in each block costs."""


class Prefix(NamedTuple):
    """What a tree begins with as others do.

    Attributes:
        number: the same for trees that share it.
        tokens: of it; 0 = the tree shares nothing.
    """

    number: int
    tokens: int


class Layout(NamedTuple):
    """Trees behind one another, in which what several begin with stands once.

    Attributes:
        places: for each tree, where its tokens lie; those that it shares lie where the first such tree has them.
        segments: of all trees, as a walk in depth meets them.
    """

    places: list[Ints]
    segments: tuple[Segment, ...]


def prefixes(trees: Sequence[Encoded]) -> list[Prefix]:
    """Returns what each tree begins with in common with others.

    Trees that begin with the same `LEAST` tokens share as many as all of these have in common: before the first medium,
    in the first segment, and not all of it.
    """
    alike: dict[bytes, list[int]] = {}
    for index, tree in enumerate(trees):
        start = tree.input_ids[: min(LEAST, _most(tree))]
        if len(start) == LEAST:
            alike.setdefault(start.tobytes(), []).append(index)
    found = [Prefix(-1, 0)] * len(trees)
    for number, some in enumerate(some for some in alike.values() if len(some) > 1):
        shared = Prefix(number, _common([trees[index] for index in some]))
        for index in some:
            found[index] = shared
    return found


def lay_out(trees: Sequence[Encoded]) -> Layout:
    """Puts trees behind one another, those that share a prefix behind it."""
    begins = prefixes(trees)
    first: dict[int, int] = {}
    order = sorted(
        range(len(trees)),
        key=lambda index: first.setdefault(begins[index].number, index) if begins[index].tokens else index,
    )
    places: dict[int, Ints] = {}
    segments: list[Segment] = []
    stem, shared = -1, Prefix(-1, 0)
    for index in order:
        tree, begin = trees[index], begins[index]
        end = segments[-1].end if segments else 0
        if begin.tokens and begin != shared:
            stem = len(segments)
            segments.append(Segment(end, end + begin.tokens))
            end += begin.tokens
        shared = begin
        place = end - begin.tokens + np.arange(len(tree))
        if begin.tokens:
            place[: begin.tokens] = segments[stem].start + np.arange(begin.tokens)
        places[index] = place
        segments += _moved(tree.segments, end, begin.tokens, len(segments), stem)
    return Layout([places[index] for index in range(len(trees))], tuple(segments))


def _moved(segments: Sequence[Segment], start: int, cut: int, first: int, stem: int) -> Iterator[Segment]:
    """Yields a tree's segments from `start` on, without its first `cut` tokens, which stand in the segment `stem`.

    Args:
        segments: of the tree.
        start: where the tokens behind those go.
        cut: tokens of its root that it shares.
        first: how many segments there are before it.
        stem: the segment of what it shares.
    """
    for segment in segments:
        parent = segment.parent + first if segment.parent >= 0 else stem if cut else -1
        yield Segment(start + max(0, segment.start - cut), start + segment.end - cut, parent)


def _most(tree: Encoded) -> int:
    """Returns how many tokens of a tree others can share; none where it has several roots."""
    if sum(segment.parent < 0 for segment in tree.segments) > 1:
        return 0
    slots = [int(placed.slots[0]) for placed in tree.media if len(placed.slots)]
    return min([tree.segments[0].end - 1, *slots])


def _common(trees: Sequence[Encoded]) -> int:
    """Returns how many tokens all trees begin with."""
    most = min(_most(tree) for tree in trees)
    starts = np.stack([tree.input_ids[:most] for tree in trees])
    different = np.flatnonzero((starts != starts[0]).any(0))
    return int(different[0]) if len(different) else most
