"""In which order rows are seen: a pure function of seed, epoch and global index."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mmsft.types import Ints

Numbers: TypeAlias = NDArray[np.signedinteger[Any]]
"""Numbers of rows, in 4 bytes each where these are enough: every data worker holds an epoch of them."""


_WINDOW: Final = 4
"""Shards whose rows are shuffled among each other."""


def number_type(rows: int) -> type[np.int32] | type[np.int64]:
    """Returns the type that numbers of so many rows need."""
    return np.int32 if rows <= np.iinfo(np.int32).max else np.int64


def permutation(seed: int | str, epoch: int, rows: int) -> Numbers:
    """Returns the order of one epoch, [rows]."""
    key = int.from_bytes(hashlib.sha256(f"order {seed} {epoch}".encode()).digest()[:16], "little")
    order: Numbers = np.arange(rows, dtype=number_type(rows))
    np.random.Generator(np.random.Philox(key=key)).shuffle(order)
    return order


@dataclass(frozen=True, eq=False)
class Order:
    """The order of a stage's rows; epochs follow one another without a gap.

    A source of which an epoch has fewer rows than there are goes on in the next one where it stopped; of one that has
    more, rows come again once all have come.

    Attributes:
        seed: of the shuffles.
        sizes: [S] rows of each source; they stand one source after the other.
        counts: [S] rows of each source in an epoch.
        groups: [rows] numbers from 0 on, the same for rows that stay together; None = all are shuffled alone.
        sequential: one source after the other; else all are shuffled together.
        shards: for each source, [size] the shard of each of its rows, where these are fetched one by one; None = no
            source is in shards.
    """

    seed: int
    sizes: Ints
    counts: Ints
    groups: Numbers | None = None
    sequential: bool = False
    shards: tuple[Numbers | None, ...] | None = None

    @classmethod
    def of(cls, seed: int, rows: int, groups: Numbers | None = None) -> "Order":
        """Returns the order of a single source's rows, each once in an epoch."""
        size = np.array([rows], np.int64)
        return cls(seed, size, size, groups)

    @property
    def rows(self) -> int:
        """Rows in an epoch."""
        return int(self.counts.sum())

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
    """Returns the rows of an epoch in their order."""
    if not order.sequential and order.shards is None and np.array_equal(order.sizes, order.counts):
        return _shuffled(order.seed, epoch, np.arange(order.rows, dtype=number_type(order.rows)), order.groups)
    drawn = [_drawn(order, source, epoch) for source in range(len(order.sizes))]
    if order.shards is not None and not order.sequential:
        return _interleaved(order.seed, epoch, [some.rows for some in drawn])
    rows = np.concatenate([some.rows for some in drawn])
    if order.sequential:
        return rows
    index: Numbers = np.arange(len(rows), dtype=number_type(len(rows)))
    groups: Numbers | None = None
    if order.groups is not None:
        groups = np.unique(np.concatenate([some.blocks for some in drawn]), return_inverse=True)[1].astype(index.dtype)
    return rows[_shuffled(order.seed, epoch, index, groups)]


def _shuffled(seed: int | str, epoch: int, rows: Numbers, groups: Numbers | None) -> Numbers:
    """Shuffles groups, and rows inside each of them.

    Args:
        seed: of the shuffle.
        epoch: its number.
        rows: [n].
        groups: [n] of the rows, from 0 on; None = each is alone.
    """
    index = permutation(seed, epoch, len(rows))
    if groups is None or not len(rows):
        return rows[index]
    place = permutation(seed, epoch, int(groups.max()) + 1)
    # Place and index in one number, which is sorted where it lies; below 2^63 up to 3e9 rows.
    keys = place[groups[index]].astype(np.int64)
    keys *= len(rows)
    keys += np.arange(len(rows), dtype=index.dtype)
    keys.sort()
    keys %= len(rows)
    return rows[index[keys]]


class _Drawn(NamedTuple):
    """What an epoch has of a source: rows, and for each the block that stays together, a group at one of its turns."""

    rows: Numbers
    blocks: Numbers


def _drawn(order: Order, source: int, epoch: int) -> _Drawn:
    size, count = int(order.sizes[source]), int(order.counts[source])
    first = int(order.sizes[:source].sum())
    kind = number_type(int(order.sizes.sum()))
    own: Numbers = np.arange(first, first + size, dtype=kind)
    groups: Numbers | None = None
    if order.groups is not None:
        groups = np.unique(order.groups[own], return_inverse=True)[1].astype(kind)
    rows: list[Numbers] = [np.zeros(0, kind)]
    blocks: list[Numbers] = [np.zeros(0, np.int64)]
    at, end = epoch * count, (epoch + 1) * count
    while at < end:
        turn, begin = divmod(at, size)
        stop = min(size, begin + end - at)
        seed, shards = f"{order.seed} source {source}", order.shards[source] if order.shards else None
        whole = _shuffled(seed, turn, own, groups) if shards is None else _by_shard(seed, turn, own, shards)
        some = whole[begin:stop]
        rows.append(some)
        if order.groups is not None:
            # The turn keeps a row apart from itself, where it comes twice in an epoch.
            blocks.append(order.groups[some] + np.int64(turn - epoch * count // size) * int(order.groups.max() + 1))
        at += stop - begin
    return _Drawn(np.concatenate(rows), np.concatenate(blocks))


def _by_shard(seed: str, turn: int, rows: Numbers, shards: Numbers) -> Numbers:
    """Shuffles shards, and the rows of a few neighbouring ones among each other: few shards are open at a time.

    Args:
        seed: of the shuffle.
        turn: its number.
        rows: [n].
        shards: [n] of the rows.
    """
    index = permutation(seed, turn, len(rows))
    place = permutation(f"{seed} shards", turn, int(shards.max()) + 1)
    return rows[index[np.argsort(place[shards[index]] // _WINDOW, kind="stable")]]


def _interleaved(seed: int, epoch: int, sources: Sequence[Numbers]) -> Numbers:
    """Returns the rows of several sources, those of each in their order: chance says whose next row comes."""
    whose = np.repeat(np.arange(len(sources)), [len(rows) for rows in sources])
    whose = whose[permutation(f"{seed} sources", epoch, len(whose))]
    rows: Numbers = np.concatenate(sources)
    found = np.empty_like(rows)
    for number, some in enumerate(sources):
        found[whose == number] = some
    return found


def chain(digest: str, rows: Ints) -> str:
    """Returns the hash of all rows seen so far: two runs with one hash saw the same rows in the same order."""
    return hashlib.sha256(digest.encode() + rows.tobytes()).hexdigest()[:16]
