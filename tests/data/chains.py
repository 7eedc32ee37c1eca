"""Threads of a few tokens and pictures, of which trees are joined."""

from collections.abc import Sequence

import numpy as np

from mmsft.types import Encoded, Media, Placed, Segment, Targets


def chain(
    blocks: Sequence[int | Media],
    learned: slice = slice(1, None),
    slots: int = 3,
    name: str = "r:1",
    source: int = 0,
    asked: Sequence[int] = (),
) -> Encoded:
    """Encodes a thread: a block is a token, or a picture, which takes some slots; slots are never learned.

    Args:
        blocks: of the thread.
        learned: which of its tokens.
        slots: of a picture.
        name: of the row.
        source: of the row.
        asked: what the pictures' adapter reads.
    """
    ids: list[int] = []
    media = []
    for block in blocks:
        if isinstance(block, Media):
            media.append(Placed(block, np.arange(len(ids), len(ids) + slots), tuple(asked)))
            ids += [0] * slots
        else:
            ids.append(block)
    array = np.array(ids, np.int64)
    at = np.arange(len(ids))[learned]
    at = at[(array[at] != 0) & (at > 0)]
    targets = Targets(at - 1, array[at], np.ones(len(at), np.float32))
    return Encoded(name, array, np.arange(len(ids)), (Segment(0, len(ids)),), targets, tuple(media), source)
