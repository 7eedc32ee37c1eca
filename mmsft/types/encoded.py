"""A conversation as tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from mmsft.types.conversation import Media

Ints: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Grid:
    """How many features a medium gives: frames (t) × rows (h) × columns (w).

    Attributes:
        of: the grid that the encoder gives, where its tower averages that to this smaller one; None = it doesn't.
        parts: grids that lie one behind the other, each of which goes through the adapter by itself: a picture as a
            whole, and in tiles. None, where all is one grid.
        overview: it is the part that shows the whole beside parts that show more of it.
    """

    t: int
    h: int
    w: int
    of: "Grid | None" = None
    parts: "tuple[Grid, ...]" = ()
    overview: bool = False

    @classmethod
    def joined(cls, *parts: "Grid") -> "Grid":
        """Returns the grid of parts that lie one behind the other."""
        return cls(1, 1, sum(part.count for part in parts), parts=parts)

    @property
    def count(self) -> int:
        """Number of features."""
        return self.t * self.h * self.w

    @property
    def whole(self) -> "Grid":
        """What the encoder gives."""
        return self.of or self

    def averaged(self, side: int) -> "Grid":
        """Returns the grid in which one feature stands for `side` × `side` of each frame, or for what is left of it."""
        return self if side == 1 else Grid(self.t, -(-self.h // side), -(-self.w // side), of=self)


@dataclass(frozen=True, slots=True)
class Targets:
    """What is learned and where, one entry a target; apart from the tokens, since a branch point has several.

    Attributes:
        position: [N] index of the token whose output predicts the target. Shifted here and nowhere else.
        token: [N] id to predict.
        weight: [N] weight in the loss.
        group: [N] index into `Encoded.values`; zeros unless it is given.
    """

    position: Ints
    token: Ints
    weight: Floats
    group: Ints = field(default_factory=lambda: np.zeros(0, np.int64))

    def __post_init__(self) -> None:
        if len(self.group) != len(self.position):
            object.__setattr__(self, "group", np.zeros(len(self.position), np.int64))

    def __len__(self) -> int:
        return len(self.position)


@dataclass(frozen=True, slots=True)
class Placed:
    """A medium and the tokens that its features replace.

    Attributes:
        media: what to load.
        slots: [S] token indices, in the order of the features.
        context: what its adapter reads of what is asked about it, as ids; empty if it reads nothing.
    """

    media: Media
    slots: Ints
    context: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of tokens of an `Encoded` that continues another one: a node of the token tree.

    Attributes:
        start: first token.
        end: one past the last token.
        parent: index of the segment that it continues, or -1.
    """

    start: int
    end: int
    parent: int = -1


def subtree_ends(segments: Sequence[Segment]) -> list[int]:
    """Returns for each segment one past the last token of its subtree; segments stand as a walk in depth meets them."""
    ends = [segment.end for segment in segments]
    for index in range(len(segments) - 1, -1, -1):
        parent = segments[index].parent
        if parent >= 0:
            ends[parent] = max(ends[parent], ends[index])
    return ends


@dataclass(frozen=True, slots=True)
class Encoded:
    """One conversation as tokens: a tree of segments; a dialogue is one segment.

    For an encoder–decoder the roots are what the encoder reads, each with the replies that the decoder writes to it.

    Attributes:
        id: the conversation's id.
        input_ids: [T]; the id at a medium's slot has no meaning.
        positions: [T] position of each token in its own thread.
        segments: parents before children, together all of the T tokens.
        targets: what is learned, positions into `input_ids`.
        media: media in the order of their slots.
        source: number of the recipe's source it comes from.
        note: what the ledger is to say of how the row is used, or empty.
        left_out: threads of the conversation, or turns at the end of them, that are left out since they are too long.
        shrunk: media that are read smaller since a thread would be too long.
        values: of the tag by which losses are told, one for each `targets.group`; empty = by none.
        rows: ids of all conversations of which it is joined; empty = it is one. Their `id` then quotes the first few.
    """

    id: str
    input_ids: Ints
    positions: Ints
    segments: tuple[Segment, ...]
    targets: Targets
    media: tuple[Placed, ...]
    source: int = 0
    note: str = ""
    left_out: int = 0
    shrunk: int = 0
    values: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of all conversations in it."""
        return self.rows or (self.id,)

    @property
    def trimmed(self) -> bool:
        """Whether something of the row is left out, or read smaller, since it is too long."""
        return self.left_out + self.shrunk > 0

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def two_sided(self) -> bool:
        """Whether it is an encoder–decoder's: there a reply doesn't continue its prompt, but counts from 0 again."""
        return any(segment.parent >= 0 and self.positions[segment.start] == 0 for segment in self.segments)
