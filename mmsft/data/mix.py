"""How many rows of each source an epoch has."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mmsft.config import MixConfig, SourceConfig
from mmsft.errors import ConfigError
from mmsft.types import Ints


class Item(NamedTuple):
    """A source of a recipe, or a recipe in the place of one.

    Attributes:
        config: its settings.
        rows: of each source in it, of an epoch of its own; one number for a source.
        lengths: mean tokens of a row of each source in it; only asked where weights are parts of the tokens.
    """

    config: SourceConfig
    rows: Sequence[float]
    lengths: Sequence[float]

    @property
    def size(self) -> float:
        """Rows in an epoch of its own."""
        return sum(self.rows)

    @property
    def length(self) -> float:
        """Mean tokens of a row."""
        tokens = sum(rows * length for rows, length in zip(self.rows, self.lengths, strict=True))
        return tokens / self.size if self.size else 0.0


def draws(mix: MixConfig, items: Sequence[Item]) -> list[float]:
    """Returns how many rows of each source an epoch has, with those of nested recipes in their places.

    Args:
        mix: by what.
        items: the recipe's sources.
    """
    parts = [_part(mix, item) if item.size else 0.0 for item in items]
    total = sum(parts)
    if mix.by != "size":
        # Held-out sources have no rows, and no part.
        rows = mix.rows or sum(item.size for item in items)
        parts = [part * rows / total for part in parts]
    capped = [min(part, item.config.cap or part) for part, item in zip(parts, items, strict=True)]
    return [
        rows * part / item.size if item.size else 0.0
        for part, item in zip(capped, items, strict=True)
        for rows in item.rows
    ]


def _part(mix: MixConfig, item: Item) -> float:
    """Returns a source's part of an epoch, in rows where the mix goes by size, else in relation to the others'."""
    match mix.by:
        case "size":
            return item.size * item.config.repeat
        case "weight":
            weight = item.config.weight or 0.0
            return weight / item.length if mix.unit == "tokens" else weight
        case "temperature":
            return float(item.size ** (1 / (mix.temperature or 1)))
        case "proportional":
            return min(item.size, mix.maximum or item.size)


def whole(shares: Sequence[float], names: Sequence[str]) -> Ints:
    """Returns shares as whole numbers with the same sum, rounded.

    Raises:
        ConfigError: a source with a share would have no row.
    """
    exact = np.array(shares, np.float64)
    counts = np.floor(exact + 1e-9).astype(np.int64)
    left = round(float(exact.sum())) - int(counts.sum())
    # The largest remainders first; of equal ones the first source's.
    for index in np.argsort(-(exact - counts), kind="stable")[:left]:
        counts[index] += 1
    empty = [index for index in range(len(exact)) if exact[index] > 0 and not counts[index]]
    if empty:
        named = ", ".join(names[index] for index in empty)
        raise ConfigError(
            f"an epoch of {counts.sum()} rows has no row of {named}: its part is too small; raise `rows`, or the weight"
        )
    return counts
