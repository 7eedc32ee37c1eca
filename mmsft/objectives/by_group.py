"""Losses by group: sums and counts that add up over batches and processes, and what they come to."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from mmsft.types import Group

Sums: TypeAlias = Mapping[Group, tuple[float, float]]
"""Σ weight · nll and Σ weight of each group."""


def add_up(parts: Iterable[Sums]) -> Sums:
    """Returns the sums and counts of all parts."""
    found: dict[Group, tuple[float, float]] = {}
    for part in parts:
        for group, (total, count) in part.items():
            before = found.get(group, (0.0, 0.0))
            found[group] = before[0] + total, before[1] + count
    return found


def losses(sums: Sums, sources: Sequence[str]) -> dict[str, dict[str, float]]:
    """Returns the loss of each group that has any target with a weight, by its source's name and its value.

    Args:
        sums: what its rows add up to; those without a value aren't told.
        sources: the recipe's source names.
    """
    found: dict[str, dict[str, float]] = {}
    for group, (total, count) in sorted(sums.items()):
        if count and group.value:
            found.setdefault(sources[group.source], {})[group.value] = total / count
    return found
