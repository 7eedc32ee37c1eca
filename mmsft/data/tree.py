"""Threads joined into a tree of tokens, in which what they share stands once, and taken apart again."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from mmsft.types import Encoded, Ints, Media, Placed, Segment, Targets


@dataclass(slots=True)
class _Node:
    """Tokens `start` to `end` of thread `thread`."""

    thread: int
    start: int
    end: int
    children: list["_Node"] = field(default_factory=list)


Apart = Callable[[Media], bool]
"""Tells whether a medium becomes other tokens in each thread, since its adapter reads what is asked about it."""


def join(threads: Sequence[Encoded], apart: Apart = lambda media: False) -> Encoded:
    """Joins threads by their longest common prefixes; the targets of all are kept.

    A thread that is the beginning of another one disappears in it.

    Args:
        threads: chains of one source, at least one.
        apart: media that threads can't share; they stand below the branch point.
    """
    if len(threads) == 1:
        return threads[0]
    keys = _keys(threads, apart)
    root = _Node(-1, 0, 0)
    for index, thread in enumerate(threads):
        _insert(root, keys, index, thread.segments[-1].start)
    return _flat(root, threads, keys)


def threads(encoded: Encoded) -> list[Encoded]:
    """Takes a tree apart into its threads, each target in the first thread that says it."""
    parents = {segment.parent for segment in encoded.segments}
    leaves = [index for index in range(len(encoded.segments)) if index not in parents]
    paths = [_path(encoded, leaf) for leaf in leaves]
    owner = _owners(encoded, paths)
    return [_thread(encoded, path, owner == index) for index, path in enumerate(paths)]


def divide(encoded: Encoded, most: int, apart: Apart = lambda media: False) -> list[list[Encoded]]:
    """Divides a tree's threads so that those of each part, joined, have at most so many tokens.

    What parts share is in each of them. A thread that is longer is a part of its own.
    """
    if len(encoded) <= most:
        return [threads(encoded)]
    parts: list[list[Encoded]] = []
    size, before = 0, None
    for thread in threads(encoded):
        # Threads come as a walk in depth meets them, so that none before shares more than the last.
        new = len(thread) - (shared(before, thread, apart) if before else 0)
        if before is None or size + new > most:
            parts.append([])
            size, new = 0, len(thread)
        parts[-1].append(thread)
        size, before = size + new, thread
    return parts


def shared(first: Encoded, second: Encoded, apart: Apart = lambda media: False) -> int:
    """Returns how many tokens two threads begin with in common."""
    one, other = _keys((first, second), apart)
    return _common(one, other)


def _keys(threads: Sequence[Encoded], apart: Apart) -> list[Ints]:
    """Returns each thread's ids, with numbers below 0 at slots: equal for equal places in equal media.

    An encoder sees both ways, so that no part of a prompt is like that of another: a whole prompt has one number. Each
    reply to it has one of its own, since a decoder's rows share nothing.
    """
    numbers: dict[tuple[Media, int, int], int] = {}
    below = -1
    keys = []
    for index, thread in enumerate(threads):
        key = thread.input_ids.copy()
        for placed in thread.media:
            # Prompts of an encoder are shared whole, with the question that such an adapter reads.
            alone = len(thread.segments) == 1 and apart(placed.media)
            which = (placed.media, len(placed.slots), index if alone else -1)
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
        child = next((child for child in node.children if keys[child.thread][child.start] == key[at]), None)
        if child is None:
            if at < reply:
                child = _Node(index, at, reply)
                node.children.append(child)
                node, at = child, reply
            node.children.append(_Node(index, at, len(key)))
            return
        # A child begins as deep in its own thread as here: what is above it is shared.
        length = _common(keys[child.thread][child.start : child.end], key[at:])
        at += length
        if at < child.end and at < len(key):
            rest = _Node(child.thread, at, child.end, child.children)
            child.end, child.children = at, [rest]
        elif at < child.end:
            return
        node = child


def _flat(root: _Node, threads: Sequence[Encoded], keys: list[Ints]) -> Encoded:
    segments: list[Segment] = []
    nodes: list[_Node] = []
    pending = [(child, -1) for child in reversed(root.children)]
    while pending:
        node, parent = pending.pop()
        start = segments[-1].end if segments else 0
        segments.append(Segment(start, start + node.end - node.start, parent))
        nodes.append(node)
        pending.extend((child, len(nodes) - 1) for child in reversed(node.children))
    children = {
        (segment.parent, int(keys[node.thread][node.start])): index
        for index, (node, segment) in enumerate(zip(nodes, segments, strict=True))
    }
    places = [_places(segments, children, key) for key in keys]
    first = threads[0]
    media = [
        Placed(placed.media, places[node.thread][placed.slots])
        for node in nodes
        for placed in threads[node.thread].media
        if len(placed.slots) and node.start <= placed.slots[0] < node.end
    ]
    return Encoded(
        id=", ".join(dict.fromkeys(thread.id for thread in threads)),
        input_ids=np.concatenate([threads[node.thread].input_ids[node.start : node.end] for node in nodes]),
        positions=np.concatenate([threads[node.thread].positions[node.start : node.end] for node in nodes]),
        segments=tuple(segments),
        targets=Targets(
            position=np.concatenate([place[t.targets.position] for place, t in zip(places, threads, strict=True)]),
            token=np.concatenate([thread.targets.token for thread in threads]),
            weight=np.concatenate([thread.targets.weight for thread in threads]),
        ),
        media=tuple(media),
        source=first.source,
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


def _path(encoded: Encoded, leaf: int) -> Ints:
    """Returns the token indices from the root to a leaf segment's end."""
    parts = []
    while leaf >= 0:
        segment = encoded.segments[leaf]
        parts.append(np.arange(segment.start, segment.end))
        leaf = segment.parent
    return np.concatenate(parts[::-1])


def _owners(encoded: Encoded, paths: list[Ints]) -> Ints:
    """Returns the thread of each target: the first in which its token follows its position, else the first there."""
    position, token = encoded.targets.position, encoded.targets.token
    owner = np.full(len(position), -1, np.int64)
    for follows in (True, False):
        for index, path in enumerate(paths):
            at = np.full(len(encoded), -1, np.int64)
            at[path] = np.arange(len(path))
            here = at[position]
            fits = (owner < 0) & (here >= 0)
            if follows:
                after = path[np.minimum(here + 1, len(path) - 1)]
                fits &= (here + 1 < len(path)) & (encoded.input_ids[after] == token)
            owner[fits] = index
    return owner


def _runs(positions: Ints) -> tuple[Segment, ...]:
    """Returns the segments of a thread: one, or an encoder–decoder's prompt and reply."""
    starts = np.flatnonzero(positions == 0).tolist()
    ends = [*starts[1:], len(positions)]
    return tuple(Segment(start, end, number - 1) for number, (start, end) in enumerate(zip(starts, ends, strict=True)))


def _thread(encoded: Encoded, path: Ints, mine: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Encoded:
    at = np.full(len(encoded), -1, np.int64)
    at[path] = np.arange(len(path))
    targets, positions = encoded.targets, encoded.positions[path]
    return replace(
        encoded,
        input_ids=encoded.input_ids[path],
        positions=positions,
        segments=_runs(positions),
        targets=Targets(at[targets.position[mine]], targets.token[mine], targets.weight[mine]),
        media=tuple(
            Placed(placed.media, at[placed.slots])
            for placed in encoded.media
            if len(placed.slots) and at[placed.slots[0]] >= 0
        ),
    )
