"""Threads joined into a tree of tokens, in which what they share stands once, and taken apart again."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, pairwise

import numpy as np

from mmsft.data.groups import merged
from mmsft.types import Encoded, Ints, Media, Placed, Segment, Targets

_NAMED = 3
"""Rows that a tree's name quotes."""


@dataclass(slots=True)
class _Node:
    """Tokens `start` to `end` of thread `thread`; children by the key of their first token."""

    thread: int
    start: int
    end: int
    children: dict[int, "_Node"] = field(default_factory=dict)


def join(threads: Sequence[Encoded]) -> Encoded:
    """Joins threads by their longest common prefixes; the targets of all are kept.

    A thread that is the beginning of another one disappears in it.

    Args:
        threads: chains of one source, at least one.
    """
    if len(threads) == 1:
        return threads[0]
    keys = _keys(threads)
    root = _Node(-1, 0, 0)
    for index, thread in enumerate(threads):
        _insert(root, keys, index, thread.segments[-1].start)
    return _flat(root, threads, keys)


def threads(encoded: Encoded) -> list[Encoded]:
    """Takes a tree apart into its threads, each target in the first thread that says it."""
    segments = encoded.segments
    if len(segments) == 1 and all(len(placed.slots) for placed in encoded.media):
        return [encoded]
    parents = {segment.parent for segment in segments}
    leaves = [index for index in range(len(segments)) if index not in parents]
    depth = _depth(segments)
    owner = _owners(encoded, leaves)
    order = np.argsort(owner, kind="stable")
    borders = np.searchsorted(owner[order], np.arange(len(leaves) + 1))
    mine = [order[start:end] for start, end in pairwise(borders)]
    starts = [segment.start for segment in segments]
    media: list[list[Placed]] = [[] for _ in segments]
    for placed in encoded.media:
        if len(placed.slots):
            media[bisect_right(starts, placed.slots[0]) - 1].append(replace(placed, slots=depth[placed.slots]))
    return [
        _thread(encoded, _path(segments, leaf), depth, some, media) for leaf, some in zip(leaves, mine, strict=True)
    ]


def divide(encoded: Encoded, most: int) -> list[list[Encoded]]:
    """Divides a tree's threads so that those of each part, joined, have at most so many tokens.

    What parts share is in each of them. A thread that is longer is a part of its own.
    """
    if len(encoded) <= most:
        return [threads(encoded)]
    parts: list[list[Encoded]] = []
    size, before = 0, None
    for thread in threads(encoded):
        # Threads come as a walk in depth meets them, so that none before shares more than the last.
        new = len(thread) - (shared(before, thread) if before else 0)
        if before is None or size + new > most:
            parts.append([])
            size, new = 0, len(thread)
        parts[-1].append(thread)
        size, before = size + new, thread
    return parts


def shared(first: Encoded, second: Encoded) -> int:
    """Returns how many tokens two threads begin with in common."""
    one, other = _keys((first, second))
    return _common(one, other)


def prompts(threads: Sequence[Encoded]) -> list[int]:
    """Returns a number for each of an encoder–decoder's threads, the same for replies to one prompt."""
    return [int(key[0]) for key in _keys(threads)]


def _keys(threads: Sequence[Encoded]) -> list[Ints]:
    """Returns each thread's ids, with numbers below 0 at slots: equal for equal places in equal media.

    Media whose adapters read what is asked about them are equal if that is, too; else they stand below the branch
    point. An encoder sees both ways, so that no part of a prompt is like that of another: a whole prompt has one
    number. Each reply to it has one of its own, since a decoder's rows share nothing.
    """
    numbers: dict[tuple[Media, int, tuple[int, ...]], int] = {}
    below = -1
    keys = []
    for thread in threads:
        key = thread.input_ids.copy()
        for placed in thread.media:
            which = (placed.media, len(placed.slots), placed.context)
            if which not in numbers:
                numbers[which] = below
                below -= len(placed.slots)
            key[placed.slots] = numbers[which] - np.arange(len(placed.slots))
        keys.append(key)
    prompts: dict[bytes, int] = {}
    for index, (thread, key) in enumerate(zip(threads, keys, strict=True)):
        if len(thread.segments) > 1:
            prompt, reply = (slice(segment.start, segment.end) for segment in thread.segments)
            key[prompt] = prompts.setdefault(key[prompt].tobytes(), len(prompts))
            key[reply] = index
    return keys


def _common(one: Ints, other: Ints) -> int:
    length = min(len(one), len(other))
    different = np.flatnonzero(one[:length] != other[:length])
    return int(different[0]) if len(different) else length


def _insert(root: _Node, keys: list[Ints], index: int, reply: int) -> None:
    """Adds a thread to a tree; from `reply` on it is a node of its own."""
    key, at, node = keys[index], 0, root
    while at < len(key):
        child = node.children.get(int(key[at]))
        if child is None:
            if at < reply:
                child = node.children[int(key[at])] = _Node(index, at, reply)
                node, at = child, reply
            node.children[int(key[at])] = _Node(index, at, len(key))
            return
        # A child begins as deep in its own thread as here: what is above it is shared.
        length = _common(keys[child.thread][child.start : child.end], key[at:])
        at += length
        if at < child.end and at < len(key):
            rest = _Node(child.thread, at, child.end, child.children)
            child.end, child.children = at, {int(keys[child.thread][at]): rest}
        elif at < child.end:
            return
        node = child


def _flat(root: _Node, threads: Sequence[Encoded], keys: list[Ints]) -> Encoded:
    segments: list[Segment] = []
    nodes: list[_Node] = []
    pending = [(child, -1) for child in reversed(root.children.values())]
    while pending:
        node, parent = pending.pop()
        start = segments[-1].end if segments else 0
        segments.append(Segment(start, start + node.end - node.start, parent))
        nodes.append(node)
        pending.extend((child, len(nodes) - 1) for child in reversed(node.children.values()))
    children = {
        (segment.parent, int(keys[node.thread][node.start])): index
        for index, (node, segment) in enumerate(zip(nodes, segments, strict=True))
    }
    places = [_places(segments, children, key) for key in keys]
    media = [
        replace(placed, slots=places[node.thread][placed.slots])
        for node in nodes
        for placed in threads[node.thread].media
        if len(placed.slots) and node.start <= placed.slots[0] < node.end
    ]
    rows = tuple(dict.fromkeys(chain.from_iterable(thread.ids for thread in threads)))
    values, group = merged([thread.values for thread in threads], [thread.targets.group for thread in threads])
    more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
    return Encoded(
        id=", ".join(rows[:_NAMED]) + more,
        input_ids=np.concatenate([threads[node.thread].input_ids[node.start : node.end] for node in nodes]),
        positions=np.concatenate([threads[node.thread].positions[node.start : node.end] for node in nodes]),
        segments=tuple(segments),
        targets=Targets(
            position=np.concatenate([place[t.targets.position] for place, t in zip(places, threads, strict=True)]),
            token=np.concatenate([thread.targets.token for thread in threads]),
            weight=np.concatenate([thread.targets.weight for thread in threads]),
            group=group,
        ),
        media=tuple(media),
        source=threads[0].source,
        values=values,
        rows=rows,
    )


def _places(segments: list[Segment], children: Mapping[tuple[int, int], int], key: Ints) -> Ints:
    """Returns where each token of a thread lies in the tree; a child is found by its parent and its first key."""
    places = np.empty(len(key), np.int64)
    at, parent = 0, -1
    while at < len(key):
        index = children[parent, int(key[at])]
        length = min(segments[index].end - segments[index].start, len(key) - at)
        places[at : at + length] = segments[index].start + np.arange(length)
        at, parent = at + length, index
    return places


def _path(segments: Sequence[Segment], leaf: int) -> list[int]:
    """Returns the segments from the root to a leaf."""
    path = []
    while leaf >= 0:
        path.append(leaf)
        leaf = segments[leaf].parent
    return path[::-1]


def _depth(segments: Sequence[Segment]) -> Ints:
    """Returns where each token stands in its thread; those of an encoder–decoder's reply follow its prompt's."""
    before: list[int] = []
    for segment in segments:
        parent = segments[segment.parent]
        before.append(before[segment.parent] + parent.end - parent.start if segment.parent >= 0 else 0)
    lengths = [segment.end - segment.start for segment in segments]
    shift = np.array([above - segment.start for above, segment in zip(before, segments, strict=True)], np.int64)
    depth: Ints = np.repeat(shift, lengths) + np.arange(sum(lengths))
    return depth


def _owners(encoded: Encoded, leaves: Sequence[int]) -> Ints:
    """Returns the thread of each target: the first in which its token follows its position, else the first there."""
    segments, ids = encoded.segments, encoded.input_ids
    first = np.full(len(segments), len(leaves), np.int64)
    first[leaves] = np.arange(len(leaves))
    for index in range(len(segments) - 1, -1, -1):
        parent = segments[index].parent
        if parent >= 0:
            first[parent] = min(first[parent], first[index])
    # Inside a segment a target's threads are those of the segment; behind its end they part.
    ways: dict[tuple[int, int], int] = {}
    for index, segment in enumerate(segments):
        if segment.parent >= 0:
            way = segments[segment.parent].end - 1, int(ids[segment.start])
            ways[way] = min(ways.get(way, len(leaves)), int(first[index]))
    targets = encoded.targets
    owner: Ints = np.repeat(first, [segment.end - segment.start for segment in segments])[targets.position]
    ends = np.isin(targets.position, [segment.end - 1 for segment in segments])
    for index in np.flatnonzero(ends).tolist():
        way = int(targets.position[index]), int(targets.token[index])
        owner[index] = ways.get(way, owner[index])
    return owner


def _runs(positions: Ints) -> tuple[Segment, ...]:
    """Returns the segments of a thread: one, or an encoder–decoder's prompt and reply."""
    starts = np.flatnonzero(positions == 0).tolist()
    ends = [*starts[1:], len(positions)]
    return tuple(Segment(start, end, number - 1) for number, (start, end) in enumerate(zip(starts, ends, strict=True)))


def _thread(
    encoded: Encoded, path: Sequence[int], depth: Ints, mine: Ints, media: Sequence[Sequence[Placed]]
) -> Encoded:
    """Returns one thread.

    Args:
        encoded: the tree.
        path: its segments.
        depth: of the tree's tokens.
        mine: which of the tree's targets are learned here.
        media: those that begin in each of the tree's segments, their slots in threads.
    """
    spans = [slice(encoded.segments[index].start, encoded.segments[index].end) for index in path]
    targets, positions = encoded.targets, np.concatenate([encoded.positions[span] for span in spans])
    return replace(
        encoded,
        input_ids=np.concatenate([encoded.input_ids[span] for span in spans]),
        positions=positions,
        segments=_runs(positions),
        targets=Targets(depth[targets.position[mine]], targets.token[mine], targets.weight[mine], targets.group[mine]),
        media=tuple(chain.from_iterable(media[index] for index in path)),
    )
