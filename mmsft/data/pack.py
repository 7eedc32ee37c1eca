"""Divides a global step among micro-batches: as few as can be, of like size, and dealt out evenly to the processes."""

from collections.abc import Iterable, Sequence
from functools import reduce
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmsft.data.prefix import Prefix
from mmsft.errors import DataError
from mmsft.types import Ints

_LONG: Final = 8
"""A prefix is long if so many of it would fill a bin."""


class Padded(NamedTuple):
    """What a padded batch takes: its threads, or the two sides of an encoder–decoder.

    Attributes:
        rows: threads, or replies.
        width: the longest one's tokens.
        prompts: that an encoder reads.
        read: the longest one's tokens.
    """

    rows: int
    width: int
    prompts: int = 0
    read: int = 0

    @property
    def size(self) -> int:
        """Tokens, padding included."""
        return self.rows * self.width + self.prompts * self.read

    def beside(self, other: "Padded") -> "Padded":
        """Returns what both take in one batch."""
        return Padded(
            self.rows + other.rows,
            max(self.width, other.width),
            self.prompts + other.prompts,
            max(self.read, other.read),
        )


def padded(shapes: Iterable[Padded]) -> Padded:
    """Returns what all of them take in one batch."""
    return reduce(Padded.beside, shapes)


def cut(shapes: Sequence[Padded], capacity: int, shares: int = 1) -> list[list[int]]:
    """Puts items into padded batches, neighbours in length together.

    So few batches as it takes; of the ways to cut the sorted items into so many, that with the smallest largest batch.

    Args:
        shapes: of each item.
        capacity: most tokens of a batch, padding included; an item that takes more is alone.
        shares: processes among which the batches are dealt out; if need be there are more, so that each gets as many.

    Returns:
        The items of each batch, by index.
    """
    # By the longer of two sides: by one of them, the others would lie together at random.
    longest = [(max(shape.width, shape.read), shape.width) for shape in shapes]
    falling = sorted(range(len(shapes)), key=longest.__getitem__, reverse=True)
    count = -(-len(_cut(shapes, falling, capacity)) // shares) * shares
    least, most = min(capacity, max((shape.size for shape in shapes), default=0)), capacity
    while least < most:
        middle = (least + most) // 2
        if len(_cut(shapes, falling, middle)) > count:
            least = middle + 1
        else:
            most = middle
    found = _cut(shapes, falling, least)
    while len(found) < count:
        largest = max(found, key=lambda some: (len(some) > 1, padded(shapes[item] for item in some).size))
        if len(largest) == 1:
            break
        place, half = found.index(largest), len(largest) // 2
        found[place : place + 1] = [largest[:half], largest[half:]]
    return found


def _cut(shapes: Sequence[Padded], falling: Sequence[int], capacity: int) -> list[list[int]]:
    found: list[list[int]] = []
    shape = Padded(0, 0)
    for item in falling:
        together = shape.beside(shapes[item])
        if not found or together.size > capacity:
            found.append([])
            together = shapes[item]
        found[-1].append(item)
        shape = together
    return found


def bins(sizes: Sequence[int], capacity: int, shares: int = 1, begins: Sequence[Prefix] = ()) -> list[list[int]]:
    """Puts items into bins, in which nothing is padded.

    First-fit-decreasing finds how many bins it takes; then each goes where there is least, which makes the bins alike,
    so that no process waits for another, and no micro-batch for memory that the others don't need.

    Args:
        sizes: tokens of each item.
        capacity: most tokens of a bin.
        shares: processes among which the bins are dealt out; the number of bins is a multiple of theirs.
        begins: what each item begins with, which a bin has once; without it they share nothing.

    Returns:
        The items of each bin, by index; a bin may be empty where there are fewer items than shares.

    Raises:
        DataError: an item is larger than a bin.
    """
    if max(sizes, default=0) > capacity:
        raise DataError(f"{max(sizes)} tokens belong together, and a micro-batch has {capacity}; raise micro_batch")
    begins = begins or [Prefix(-1, 0)] * len(sizes)
    own = [size - begin.tokens for size, begin in zip(sizes, begins, strict=True)]
    falling = _in_turn(own, begins, capacity)
    fitted = _first_fit(own, falling, capacity, begins)
    count = max(1, -(-len(fitted) // shares)) * shares
    fitted += [[] for _ in range(count - len(fitted))]
    return _even(own, falling, capacity, begins, count) or fitted


def filled(some: Sequence[int], sizes: Sequence[int], begins: Sequence[Prefix]) -> int:
    """Returns the tokens of a bin's items."""
    shared = {begins[item] for item in some}
    return sum(begin.tokens for begin in shared) + sum(sizes[item] - begins[item].tokens for item in some)


def deal(costs: Sequence[int], shares: int) -> list[list[int]]:
    """Deals items out, the dearest first, each to the share with the least so far.

    Returns:
        The items of each share, by index; none has more of them than its part, rounded up.
    """
    most = -(-len(costs) // shares)
    dealt: list[list[int]] = [[] for _ in range(shares)]
    filled = [0] * shares
    for item in _falling(costs):
        free = [share for share in range(shares) if len(dealt[share]) < most]
        share = min(free, key=lambda share: (filled[share], len(dealt[share])))
        dealt[share].append(item)
        filled[share] += costs[item]
    return dealt


def _falling(sizes: Sequence[int]) -> list[int]:
    return sorted(range(len(sizes)), key=lambda item: (-sizes[item], item))


def _in_turn(own: Sequence[int], begins: Sequence[Prefix], capacity: int) -> list[int]:
    """Returns the items as they fall in size; those with a long prefix come first and together, so that few have it."""
    long = [begin if _LONG * begin.tokens > capacity else Prefix(-1, 0) for begin in begins]
    return sorted(range(len(own)), key=lambda item: (-long[item].tokens, long[item].number, -own[item], item))


class _Bins:
    """Bins that are being filled.

    Args:
        count: of them.
        own: tokens of each item, without those that it may share.
        begins: what each item begins with.
    """

    def __init__(self, count: int, own: Sequence[int], begins: Sequence[Prefix]) -> None:
        self._filled, self._own, self._begins = np.zeros(count, np.int64), own, begins
        self._have: dict[Prefix, NDArray[np.bool_]] = {}

    def with_item(self, item: int, opened: int, times: int = 1) -> Ints:
        """Returns how full each of the first bins would be with an item, if a new prefix counted so many times."""
        begin = self._begins[item]
        full: Ints = self._filled[:opened] + (self._own[item] + times * begin.tokens)
        if begin in self._have:
            full[self._have[begin][:opened]] -= times * begin.tokens
        return full

    def put(self, item: int, place: int) -> None:
        """Puts an item into a bin."""
        begin = self._begins[item]
        have = self._have.setdefault(begin, np.zeros(len(self._filled), bool)) if begin.tokens else None
        self._filled[place] += self._own[item]
        if have is not None and not have[place]:
            self._filled[place] += begin.tokens
            have[place] = True


def _first_fit(own: Sequence[int], falling: Sequence[int], capacity: int, begins: Sequence[Prefix]) -> list[list[int]]:
    """Puts each item into the first bin that has room for it, a new one if none has."""
    bins = _Bins(len(own), own, begins)
    found: list[list[int]] = []
    for item in falling:
        fits = bins.with_item(item, len(found)) <= capacity
        place = int(fits.argmax()) if fits.any() else len(found)
        if place == len(found):
            found.append([])
        found[place].append(item)
        bins.put(item, place)
    return found


def _even(
    own: Sequence[int], falling: Sequence[int], capacity: int, begins: Sequence[Prefix], count: int
) -> list[list[int]]:
    """Puts each item where the bin is the emptiest with it; returns nothing if one overflows so.

    That a prefix stands in one more bin costs twice what it takes, or bins would be alike at the price of all of them.
    """
    bins = _Bins(count, own, begins)
    found: list[list[int]] = [[] for _ in range(count)]
    for item in falling:
        place = int(bins.with_item(item, count, times=2).argmin())
        if bins.with_item(item, count)[place] > capacity:
            return []
        found[place].append(item)
        bins.put(item, place)
    return found
