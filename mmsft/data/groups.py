"""Puts numbered names together: each name once, and numbers that count the same names."""

from collections.abc import Hashable, Sequence
from typing import TypeVar

import numpy as np

from mmsft.types import Ints

_Name = TypeVar("_Name", bound=Hashable)


def merged(names: Sequence[Sequence[_Name]], numbers: Sequence[Ints]) -> tuple[tuple[_Name, ...], Ints]:
    """Returns all names, each once, and all numbers behind one another.

    Args:
        names: of each part; a part may have none.
        numbers: of each part, indices into its names.
    """
    place: dict[_Name, int] = {}
    for each in names:
        for name in each:
            place.setdefault(name, len(place))
    moved = [
        np.array([place[name] for name in own], np.int64)[number] if own else number
        for own, number in zip(names, numbers, strict=True)
    ]
    return tuple(place), np.concatenate(moved)
