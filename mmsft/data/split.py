"""Draws rows to hold out, those that show the same media together."""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

_NEVER = 1 << 64


def draw(rows: Iterable[Sequence[bytes]], seed: int, fraction: float) -> NDArray[np.bool_]:
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
    drawn = fraction * (1 << 64)
    return np.array(
        [_number(b"held out %d %d" % (seed, root(first))) < drawn and first != _NEVER for first in sets], bool
    )


def _number(item: bytes) -> int:
    return int.from_bytes(hashlib.sha256(item).digest()[:8], "little")
