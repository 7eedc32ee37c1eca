"""What an adapter is: how features become tokens of the language model, and how those lie among the text."""

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


class Adapter(Protocol):
    """A frozen spec that YAML can state, as a frozen dataclass; all of the tower's learned glue is in its module."""

    def layout(self, grid: Grid) -> Layout:
        """Returns what a medium with these features occupies among the tokens."""
        ...

    def build(self, d_in: int, d_out: int) -> nn.Module:
        """Builds the module: `Features` with values [N, L, d_in] and the media's `Grid` → tokens [N, S, d_out]."""
        ...
