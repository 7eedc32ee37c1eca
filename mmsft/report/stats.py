"""What rows are made of, as a page: a table of the sources, their lengths drawn, and how full packs get."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np

from mmsft.report.page import page

_WIDE: Final = 900.0
_HIGH: Final = 120.0
_BINS: Final = 60


class Column(NamedTuple):
    """A column of a histogram, in pixels, and what it counts."""

    x: float
    width: float
    height: float
    label: str


@dataclass(frozen=True)
class Histogram:
    """How many rows of a source have how many tokens.

    Attributes:
        name: of the source.
        columns: from the shortest rows to the longest.
        least: tokens of the shortest.
        most: tokens of the longest.
    """

    name: str
    columns: tuple[Column, ...]
    least: int
    most: int


def stats_page(title: str, stages: Sequence[Mapping[str, Any]], lengths: Mapping[str, Sequence[int]]) -> str:
    """Returns a page.

    Args:
        title: above it.
        stages: what `StageStats.as_dict` gives.
        lengths: tokens of each row, by source.
    """
    drawn = [histogram(name, some) for name, some in lengths.items() if some]
    return page("stats", title=title, stages=stages, drawn=drawn, width=_WIDE, height=_HIGH)


def histogram(name: str, lengths: Sequence[int]) -> Histogram:
    """Returns a source's lengths as columns; the fullest is as high as the picture."""
    values = np.array(lengths)
    counts, edges = np.histogram(values, bins=min(_BINS, int(values.max() - values.min()) + 1))
    width = _WIDE / len(counts)
    columns = tuple(
        Column(number * width, width - 1, _HIGH * count / counts.max(), f"{edges[number]:,.0f} tokens: {count:,} rows")
        for number, count in enumerate(counts)
    )
    return Histogram(name, columns, int(values.min()), int(values.max()))
