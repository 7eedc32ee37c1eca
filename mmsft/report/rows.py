"""Rows as a page shows them: their turns and media, the tree that they are, and what the model reads and learns."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final, NamedTuple

from mmsft.report.media import Medium
from mmsft.report.page import page
from mmsft.report.tree import HIGH, WIDE, Tree

OPEN: Final = 1500
"""Tokens of a thread up to which a page shows it at once; a longer one opens at a click."""

LONG: Final = 2000
"""Characters of a text up to which a page shows it at once; the rest opens at a click."""

WEIGHTS: Final = (0.25, 0.5, 1.0)
"""Whose shades the legend shows."""


class Token(NamedTuple):
    """A token: its id, and what it says; of a medium's slots both stand for all of them."""

    id: str
    text: str


class Piece(NamedTuple):
    """Tokens of one kind behind one another.

    Attributes:
        kind: ``text``, ``control`` or ``media``.
        weight: in the loss; None = context.
        tokens: of it.
    """

    kind: str
    weight: float | None
    tokens: tuple[Token, ...]

    @property
    def shade(self) -> str:
        """How dark it is: by its weight, at most fully."""
        return shade(self.weight or 0.0)


class Said(NamedTuple):
    """A turn as its row has it, before a template.

    Attributes:
        number: from 1.
        role: who speaks.
        answers: number of the turn that it answers, where that isn't the one before; None = it is, or there is none.
        depth: branch points above it; where there are none, it need not say its number.
        weight: in the loss, where the recipe learns it.
        parts: texts and media in their order.
        more: what stands beside them, by name: reasoning, calls.
    """

    number: int
    role: str
    answers: int | None
    depth: int
    weight: float
    parts: tuple[str | Medium, ...]
    more: tuple[tuple[str, str], ...] = ()

    @property
    def remarks(self) -> str:
        """What is worth saying of it beside its role: its place among branches, and its weight."""
        place = f"turn {self.number}" if self.depth else ""
        answers = f"answers turn {self.answers}" if self.answers else ""
        weight = f"weight {self.weight:g}" if self.weight != 1 else ""
        return ", ".join(filter(None, (place, answers, weight)))


@dataclass(frozen=True)
class Drawn:
    """A row to show.

    Attributes:
        id: of the row.
        number: its place in the epoch, from 1.
        source: its name in the recipe.
        tags: columns that the recipe keeps.
        turns: what it says; empty where it can't be read.
        raw: the row as its file has it, where it can't be read.
        group: number of the rows that it is joined with; None = it is alone.
        joined: the tree that these make, at the first of them.
        threads: what the model reads, a thread after the other; what they share is learned in the first.
        tree: the same, drawn.
        tokens: how many the row has, what threads share counted once.
        learned: targets among them.
        slots: of media.
        note: how it is used otherwise than one would think.
        error: why it can't be used.
    """

    id: str
    number: int = 1
    source: str = ""
    tags: tuple[tuple[str, str], ...] = ()
    turns: tuple[Said, ...] = ()
    raw: str = ""
    group: int | None = None
    joined: Tree | None = None
    threads: tuple[tuple[Piece, ...], ...] = ()
    tree: Tree | None = None
    tokens: int = 0
    learned: int = 0
    slots: int = 0
    note: str = ""
    error: str | None = None


class Group(NamedTuple):
    """Rows that follow one another and go through the model together: of one group, or one alone."""

    number: int | None
    rows: tuple[Drawn, ...]


def shade(weight: float) -> str:
    """Returns how opaque the ground of text of a weight is."""
    return f"{0.1 + 0.32 * min(1.0, weight):.2f}"


def rows_page(title: str, rows: Sequence[Drawn], facts: Sequence[str] = ()) -> str:
    """Returns a page of rows.

    Args:
        title: above them.
        rows: in their order.
        facts: what is said about them below the title.
    """
    numbered = enumerate(rows)
    keys = groupby(numbered, key=lambda pair: ("group", pair[1].group) if pair[1].group is not None else pair[0])
    groups = [Group(some[0].group, some) for _, pairs in keys if (some := tuple(row for _, row in pairs))]
    shades = [(weight, shade(weight)) for weight in WEIGHTS]
    sizes = {"wide": WIDE, "high": HIGH, "most": OPEN, "long": LONG}
    return page("rows", title=title, facts=facts, rows=rows, groups=groups, shades=shades, **sizes)
