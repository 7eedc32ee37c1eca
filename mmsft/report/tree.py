"""Rows as lines of tokens, drawn to scale: what is learned, where media lie, and which branches share what."""

from collections.abc import Sequence
from itertools import groupby
from typing import Final, NamedTuple

from mmsft.types import Encoded

WIDE: Final = 900.0
HIGH: Final = 18.0
_STEP: Final = 26.0
_TOLD: Final = 12


class Mark(NamedTuple):
    """Tokens of one kind behind one another, in pixels from the left: ``learned`` or ``media``."""

    x: float
    width: float
    kind: str


class Bar(NamedTuple):
    """A segment of a tree: where it is drawn, in pixels, and what it holds.

    Attributes:
        x: its left end.
        y: its upper side.
        width: of its tokens.
        joint: x and y of the end of the segment that it continues; None = it continues none.
        marks: what it holds beside context.
        label: the same in words.
    """

    x: float
    y: float
    width: float
    joint: tuple[float, float] | None
    marks: tuple[Mark, ...]
    label: str


class Tree(NamedTuple):
    """A row, or several that are joined.

    Attributes:
        bars: its segments, parents first.
        label: what it is, in words.
    """

    bars: tuple[Bar, ...]
    label: str

    @property
    def segments(self) -> str:
        """What its first segments are, in words; empty where it is one."""
        labels = [bar.label for bar in self.bars]
        more = [f"and {len(labels) - _TOLD:,} more"] if len(labels) > _TOLD else []
        return " · ".join([*labels[:_TOLD], *more]) if len(labels) > 1 else ""

    @property
    def height(self) -> float:
        """In pixels."""
        return max(bar.y for bar in self.bars) + HIGH


def drawn(encoded: Encoded) -> Tree:
    """Returns a row's segments, the longest thread as wide as the page, each below the one before."""
    scale = WIDE / (int(encoded.positions.max()) + 1)
    kinds = _kinds(encoded)
    bars: list[Bar] = []
    for number, segment in enumerate(encoded.segments):
        x, y = float(encoded.positions[segment.start]) * scale, number * _STEP
        above = bars[segment.parent] if segment.parent >= 0 else None
        joint = None if above is None else (above.x + above.width, above.y + HIGH / 2)
        own = kinds[segment.start : segment.end]
        bars.append(Bar(x, y, len(own) * scale, joint, _marks(own, x, scale), told(own)))
    return Tree(tuple(bars), told(kinds) + (f", in {len(bars):,} segments" if len(bars) > 1 else ""))


def outline(encoded: Encoded) -> str:
    """Returns a row's segments as lines of text, each below the one that it continues; of a chain one line."""
    kinds, depths, lines = _kinds(encoded), list[int](), list[str]()
    for segment in encoded.segments:
        depths.append(depths[segment.parent] + 1 if segment.parent >= 0 else 0)
        lines.append("  " * depths[-1] + "└ " * (depths[-1] > 0) + told(kinds[segment.start : segment.end]))
    return "\n".join(lines)


def told(kinds: Sequence[str]) -> str:
    """Returns in words how many tokens there are, and of which kinds."""
    parts = [f"{kinds.count(kind):,} {word}" for kind, word in _WORDS.items() if kind in kinds]
    return ", ".join([counted(len(kinds)), *parts])


def counted(tokens: int) -> str:
    """Returns a number of tokens in words."""
    return f"{tokens:,} token" + ("" if tokens == 1 else "s")


def _kinds(encoded: Encoded) -> list[str]:
    kinds = [""] * len(encoded)
    ids = encoded.input_ids.tolist()
    segments = encoded.segments
    # After a segment's last token come the first ones of those that continue it; no two of these are alike.
    first = {(segments[one.parent].end - 1, ids[one.start]): one.start for one in segments if one.parent >= 0}
    for position, token in zip(encoded.targets.position.tolist(), encoded.targets.token.tolist(), strict=True):
        at = first.get((position, token), position + 1)
        if at < len(kinds):
            kinds[at] = "learned"
    for placed in encoded.media:
        for slot in placed.slots.tolist():
            kinds[slot] = "media"
    return kinds


def _marks(kinds: Sequence[str], x: float, scale: float) -> tuple[Mark, ...]:
    marks, at = [], 0
    for kind, some in groupby(kinds):
        count = len(list(some))
        if kind:
            marks.append(Mark(x + at * scale, count * scale, kind))
        at += count
    return tuple(marks)


_WORDS: Final = {"learned": "learned", "media": "of media"}
