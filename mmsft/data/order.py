"""In which order rows are seen: a pure function of seed, epoch and global index."""

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from mmsft.types import Ints


@lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, rows: int) -> Ints:
    """Returns the order of one epoch, [rows]."""
    key = int.from_bytes(hashlib.sha256(f"order {seed} {epoch}".encode()).digest()[:16], "little")
    return np.random.Generator(np.random.Philox(key=key)).permutation(rows).astype(np.int64)


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
    groups: Ints | None = None

    def at(self, start: int, stop: int) -> Ints:
        """Returns which rows stand at the global indices start … stop − 1."""
        parts = []
        while start < stop:
            epoch, first = divmod(start, self.rows)
            last = min(self.rows, first + stop - start)
            parts.append(_epoch(self, epoch)[first:last])
            start += last - first
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)


@lru_cache(maxsize=2)
def _epoch(order: Order, epoch: int) -> Ints:
    """Shuffles groups, and rows inside each of them."""
    rows = permutation(order.seed, epoch, order.rows)
    if order.groups is None:
        return rows
    place = permutation(order.seed, epoch, int(order.groups.max()) + 1)
    together: Ints = rows[np.argsort(place[order.groups[rows]], kind="stable")]
    return together


def chain(digest: str, rows: Ints) -> str:
    """Returns the hash of all rows seen so far: two runs with one hash saw the same rows in the same order."""
    return hashlib.sha256(digest.encode() + rows.tobytes()).hexdigest()[:16]
