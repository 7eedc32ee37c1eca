"""What an adapter is: how features become tokens of the language model, and how those lie among the text."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from torch import nn

from mmsft.types import Grid


@dataclass(frozen=True, slots=True)
class Slots:
    """Places for `count` of the adapter's tokens."""

    count: int


@dataclass(frozen=True, slots=True)
class Literal:
    """Text around or between the slots, e.g. a frame's time stamp; tokenised as content."""

    text: str


Layout: TypeAlias = tuple[Slots | Literal, ...]
"""What a medium occupies among the tokens, in order; the slots of all its `Slots` together are its S tokens."""


def slots_of(layout: Layout) -> int:
    """Returns how many of the adapter's tokens a medium takes."""
    return sum(part.count for part in layout if isinstance(part, Slots))


class Adapter(Protocol):
    """How features become tokens: subclass it as a frozen dataclass, whose fields YAML can then set.

    What learns is in the module that `build` returns; the spec itself is pickled to data workers.
    """

    @property
    def reads_context(self) -> bool:
        """Whether its tokens depend on what is asked about the medium, so that questions can't share them."""
        return False

    def context(self, text: str) -> tuple[int, ...]:
        """Returns as ids what the module reads of what is asked: the text of the turn in which the medium stands.

        Called in data workers, for an adapter that reads it.
        """
        return ()

    @abstractmethod
    def layout(self, grid: Grid) -> Layout:
        """Returns what a medium with these features occupies among the tokens; of one in parts it is asked for each.

        Raises:
            DataError: the adapter can't take such a medium.
        """

    @abstractmethod
    def build(self, d_in: int, d_out: int) -> nn.Module:
        """Builds the module that makes tokens of features.

        Args:
            d_in: the encoder's width.
            d_out: width of the decoder's embeddings.

        Returns:
            A module called with `Features` (values [N, L, d_in]) and the `Grid` of these media, which gives tokens
            [N, S, d_out]: as many as `layout` has slots. If it reads what is asked, it is called with the `Context` as
            well, and with the features of a medium once for each question.
        """


def layout_of(adapter: Adapter, grid: Grid) -> Layout:
    """Returns what a medium with these features occupies among the tokens, its parts one behind the other.

    Raises:
        DataError: the adapter can't take such a medium.
    """
    return tuple(part for each in grid.parts or (grid,) for part in adapter.layout(each))
