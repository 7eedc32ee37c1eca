"""Regions of a picture as words: each coordinate is one of a number of bins, as OFA writes it."""

import math
import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from mmsft.data.formats.fields import items, show
from mmsft.errors import DataError

BINS: Final = 1000
"""Bins of OFA (Wang et al. 2022, arXiv 2202.03052); ``decoder.new_tokens`` may hold one token for each."""
_BIN: Final = re.compile(r"<bin_(\d+)>")


class Size(NamedTuple):
    """A picture's width and height in pixels, as it is seen upright."""

    width: int
    height: int


def read_box(value: Any, where: str) -> tuple[float, ...]:
    """Returns a box's left, top, right and bottom in pixels, from four numbers or a text of them.

    Raises:
        DataError: it isn't one.
    """
    parts = re.split(r"[\s,]+", value.strip(" []()")) if isinstance(value, str) else items(value, where)
    try:
        numbers = tuple(float(part) for part in parts)
    except (TypeError, ValueError):
        raise DataError(f"{where}: expected a box of four numbers, left top right bottom, got {show(value)}") from None
    if len(numbers) != 4 or not all(math.isfinite(number) for number in numbers):
        raise DataError(f"{where}: expected a box of four numbers, left top right bottom, got {show(value)}")
    left, top, right, bottom = numbers
    if left > right or top > bottom:
        raise DataError(f"{where}: the box {show(value)} ends before it begins; write left, top, right, bottom")
    return numbers


def in_bins(box: Sequence[float], size: Size, bins: int = BINS) -> str:
    """Returns a box as ``<bin_3> <bin_7> <bin_500> <bin_999>``; what lies outside of the picture is at its edge."""
    sides = (size.width, size.height, size.width, size.height)
    places = (round(coordinate * (bins - 1) / side) for coordinate, side in zip(box, sides, strict=True))
    return " ".join(f"<bin_{min(max(place, 0), bins - 1)}>" for place in places)


def in_pixels(said: str, size: Size, bins: int = BINS) -> list[tuple[float, ...]]:
    """Returns the boxes that a text names by bins, each coordinate within half a bin of what was written."""
    found = [int(number) for number in _BIN.findall(said)]
    sides = (size.width, size.height) * 2
    return [
        tuple(place * side / (bins - 1) for place, side in zip(found[at : at + 4], sides, strict=True))
        for at in range(0, len(found) - 3, 4)
    ]
