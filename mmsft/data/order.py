"""In which order rows are seen: a pure function of seed, epoch and global index."""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mmsft.types import Ints

Numbers: TypeAlias = NDArray[np.signedinteger[Any]]
"""Numbers of rows, in 4 bytes each where these are enough: every data worker holds an epoch of them."""


def number_type(rows: int) -> type[np.int32] | type[np.int64]:
    """Returns the type that numbers of so many rows need."""
    return np.int32 if rows <= np.iinfo(np.int32).max else np.int64


def permutation(seed: int, epoch: int, rows: int) -> Numbers:
    """Returns the order of one epoch, [rows]."""
    key = int.from_bytes(hashlib.sha256(f"order {seed} {epoch}".encode()).digest()[:16], "little")
    order: Numbers = np.arange(rows, dtype=number_type(rows))
    np.random.Generator(np.random.Philox(key=key)).shuffle(order)
    return order


@dataclass(frozen=True, eq=False)
class Order:
    """The order of a stage's rows; epochs follow one another without a gap.

    Attributes:
        seed: of the shuffles.
        rows: in an epoch.
        groups: [rows] numbers from 0 on, the same for rows that stay together; None = all are shuffled alone.
    """

    seed: int
    rows: int
    groups: Numbers | None = None

    def at(self, start: int, stop: int) -> Ints:
        """Returns which rows stand at the global indices start … stop − 1."""
        parts = []
        while start < stop:
            epoch, first = divmod(start, self.rows)
            last = min(self.rows, first + stop - start)
            parts.append(_epoch(self, epoch)[first:last])
            start += last - first
        return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, np.int64)


# Steps are read in their order, so that one epoch at a time is enough.
@lru_cache(maxsize=1)
def _epoch(order: Order, epoch: int) -> Numbers:
    """Shuffles groups, and rows inside each of them."""
    rows = permutation(order.seed, epoch, order.rows)
    if order.groups is None:
        return rows
    place = permutation(order.seed, epoch, int(order.groups.max()) + 1)
    # Place and index in one number, which is sorted where it lies; below 2^63 up to 3e9 rows.
    keys = place[order.groups[rows]].astype(np.int64)
    keys *= order.rows
    keys += np.arange(order.rows, dtype=rows.dtype)
    keys.sort()
    keys %= order.rows
    return rows[keys]


def chain(digest: str, rows: Ints) -> str:
    """Returns the hash of all rows seen so far: two runs with one hash saw the same rows in the same order."""
    return hashlib.sha256(digest.encode() + rows.tobytes()).hexdigest()[:16]
