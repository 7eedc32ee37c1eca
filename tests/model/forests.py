"""Random forests of segments, and what a token of them sees by the definition."""

import itertools
from collections.abc import Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor

from mmsft.types import Pack, Segment, subtree_ends

# The length of each segment, and how deep it stands at most: it follows the last one that is less deep.
SHAPES = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 4)), min_size=1, max_size=12)


def forest(shape: Sequence[tuple[int, int]]) -> tuple[Segment, ...]:
    segments: list[Segment] = []
    path: list[int] = []
    for length, deepest in shape:
        del path[deepest:]
        start = segments[-1].end if segments else 0
        segments.append(Segment(start, start + length, path[-1] if path else -1))
        path.append(len(segments) - 1)
    return tuple(segments)


def pack_of(segments: tuple[Segment, ...]) -> Pack:
    lengths = torch.tensor([segment.end - segment.start for segment in segments])
    return Pack(segments, torch.tensor(subtree_ends(segments)).repeat_interleave(lengths))


def paths(segments: Sequence[Segment]) -> list[list[int]]:
    """Returns for each token its thread up to itself: its ancestors' tokens and its own segment's."""
    threads: list[list[int]] = []
    ends: list[list[int]] = []
    for segment in segments:
        path = list(ends[segment.parent]) if segment.parent >= 0 else []
        for token in range(segment.start, segment.end):
            path.append(token)
            threads.append(list(path))
        ends.append(path)
    return threads


def positions_of(segments: Sequence[Segment]) -> Tensor:
    return torch.tensor([len(thread) - 1 for thread in paths(segments)])


def dense_mask(segments: Sequence[Segment], window: int | None = None) -> Tensor:
    """Returns [T, T] whether a query (first) sees a key, by walking up from each token."""
    threads = paths(segments)
    mask = torch.zeros(len(threads), len(threads), dtype=torch.bool)
    for query, thread in enumerate(threads):
        mask[query, thread[-window:] if window else thread] = True
    return mask


def caterpillar(count: int, length: int = 1) -> tuple[Segment, ...]:
    """Returns a spine of segments, each of which has a leaf beside the next: as deep as it is long."""
    spine = itertools.chain.from_iterable(((length, depth), (length, depth + 1)) for depth in range(count))
    return forest(list(spine))


def chain_of(count: int, length: int = 1) -> tuple[Segment, ...]:
    return forest([(length, depth) for depth in range(count)])
