"""What rows are made of, as a page: tables of the sources, their tokens and lengths drawn, and how full packs get."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import ceil, floor, log2
from typing import Any, Final, NamedTuple

import numpy as np

from mmsft.report.page import page

WIDE: Final = 900.0
LEFT: Final = 190.0
"""Where plots begin, in pixels: right of the names."""
HIGH: Final = 34.0
"""Of a source's strip, in pixels."""

_RIGHT: Final = 70.0
_BINS: Final = 8  # of each doubling of the length


class Column(NamedTuple):
    """A column of a histogram, in pixels, and what it counts."""

    x: float
    width: float
    height: float
    label: str


class Strip(NamedTuple):
    """How many rows of a source have how many tokens.

    Attributes:
        name: of the source.
        columns: from the shortest rows to the longest.
        label: the same in words.
    """

    name: str
    columns: tuple[Column, ...]
    label: str


class Lengths(NamedTuple):
    """The lengths of all sources over one axis, on which each doubling is as wide.

    Attributes:
        strips: a source each.
        ticks: x in pixels, and its tokens.
        limit: x of the recipe's length; None = no row is nearly so long.
    """

    strips: tuple[Strip, ...]
    ticks: tuple[tuple[float, int], ...]
    limit: float | None = None


class Share(NamedTuple):
    """A source's tokens as a bar of three parts, in pixels, each behind the one before.

    Attributes:
        name: of the source.
        parts: kind (``context``, ``learned`` or ``media``), x and width.
        end: where the bar ends.
        label: the tokens in words.
    """

    name: str
    parts: tuple[tuple[str, float, float], ...]
    end: float
    label: str


def stats_page(
    title: str,
    stages: Sequence[Mapping[str, Any]],
    lengths: Mapping[str, Sequence[int]],
    limit: int,
    facts: Sequence[str] = (),
) -> str:
    """Returns a page.

    Args:
        title: above it.
        stages: what `StageStats.as_dict` gives.
        lengths: tokens of each row, by source.
        limit: the most tokens that the recipe lets a row have.
        facts: what is said about them below the title.
    """
    shown = [{**stage, "shares": shares(stage["sources"]), "whole": _whole(stage["sources"])} for stage in stages]
    sizes = {"wide": WIDE, "left": LEFT, "high": HIGH, "right": _RIGHT}
    return page("stats", title=title, facts=facts, stages=shown, lengths=drawn(lengths, limit), limit=limit, **sizes)


def drawn(lengths: Mapping[str, Sequence[int]], limit: int) -> Lengths:
    """Returns the lengths of sources as columns; the fullest of each source is as high as its strip."""
    some = {name: np.array(values) for name, values in lengths.items() if len(values)}
    if not some:
        return Lengths((), ())
    first = floor(log2(min(int(values.min()) for values in some.values())))
    last = max(first + 1, ceil(log2(max(int(values.max()) for values in some.values()) + 1)))
    scale = (WIDE - LEFT - _RIGHT) / (last - first)
    # Edges are whole, so that each length is in the column whose label names it.
    edges = sorted({round(2 ** (first + step / _BINS)) for step in range((last - first) * _BINS + 1)})
    places = [LEFT + (log2(edge) - first) * scale for edge in edges]
    strips = tuple(Strip(name, _columns(values, edges, places), _told(values)) for name, values in some.items())
    ticks = tuple((LEFT + (power - first) * scale, 2**power) for power in range(first, last + 1))
    return Lengths(strips, ticks, LEFT + (log2(limit) - first) * scale if first <= log2(limit) <= last else None)


def _columns(values: "np.ndarray[Any, Any]", edges: Sequence[int], places: Sequence[float]) -> tuple[Column, ...]:
    # The last bin of a histogram has both of its ends, the others none at the right: one more bin leaves that empty.
    counts, _ = np.histogram(values, bins=[*edges, edges[-1] + 1])
    columns = []
    for count, (least, above), (x, end) in zip(counts, pairwise(edges), pairwise(places), strict=False):
        if count:
            told = f"{least:,}" if above == least + 1 else f"{least:,} to {above - 1:,}"
            label = f"{told} tokens: {count:,} rows"
            columns.append(Column(x, max(1.0, end - x - 1), HIGH * count / counts.max(), label))
    return tuple(columns)


def _told(values: "np.ndarray[Any, Any]") -> str:
    return f"{values.min():,} to {values.max():,} tokens, half of the rows at most {np.median(values):,.0f}"


def shares(sources: Sequence[Mapping[str, Any]]) -> list[Share]:
    """Returns each source's tokens as a bar; the longest is as wide as the plot."""
    most = max((source["tokens"] for source in sources), default=0) or 1
    scale = (WIDE - LEFT - _RIGHT) / most
    found = []
    for source in sources:
        slots = sum(source["media_tokens"].values())
        counts = {"learned": source["learned"], "media": slots}
        counts = {"context": max(0, source["tokens"] - sum(counts.values())), **counts}
        x, parts = LEFT, []
        for kind, count in counts.items():
            parts.append((kind, x, count * scale))
            x += count * scale
        label = ", ".join(f"{count:,} {kind}" for kind, count in counts.items())
        found.append(Share(source["name"], tuple(parts), x, label))
    return found


def _whole(sources: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Returns the sums over sources."""
    return {key: sum(source[key] for source in sources) for key in ("rows", "lost", "duplicates", "tokens", "learned")}
