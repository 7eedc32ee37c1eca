"""Draws rows to hold out, those that show the same media together."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_NEVER = 1 << 64


class Drawn(NamedTuple):
    """Which rows are held out [n], and how many rows the largest set of connected ones has."""

    held_out: NDArray[np.bool_]
    largest: int


def draw(rows: Iterable[Sequence[bytes]], seed: int, fraction: float) -> Drawn:
    """Tells which rows are held out.

    Rows that share something are drawn as one, also where it is a third row that connects them; else what is held out
    would be seen in training. The order of the rows decides nothing.

    Args:
        rows: what each row shows; a row that shows nothing, since it can't be read, isn't held out.
        seed: of the draw.
        fraction: of the sets of connected rows.
    """
    above: dict[int, int] = {}

    def root(number: int) -> int:
        while (parent := above.setdefault(number, number)) != number:
            above[number] = above[parent]
            number = parent
        return number

    sets: list[int] = []
    for shown in rows:
        roots = sorted({root(_number(item)) for item in shown}) or [_NEVER]
        above.update(dict.fromkeys(roots[1:], roots[0]))
        sets.append(roots[0])
    sets = [root(first) for first in sets]
    drawn = fraction * (1 << 64)
    held = [first != _NEVER and _number(b"held out %d %d" % (seed, first)) < drawn for first in sets]
    sizes = Counter(first for first in sets if first != _NEVER)
    return Drawn(np.array(held, bool), max(sizes.values(), default=0))


def _number(item: bytes) -> int:
    return int.from_bytes(hashlib.sha256(item).digest()[:8], "little")
