"""Divides a global step among micro-batches: as few as can be, of like size, and dealt out evenly to the processes."""

from collections.abc import Iterable, Sequence
from functools import reduce
from heapq import heapify, heapreplace
from typing import NamedTuple

from mmsft.errors import DataError


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


def bins(sizes: Sequence[int], capacity: int, shares: int = 1) -> list[list[int]]:
    """Puts items into bins, in which nothing is padded.

    First-fit-decreasing finds how many bins it takes; filling the emptiest first then makes them alike, so that no
    process waits for another, and no micro-batch for memory that the others don't need.

    Args:
        sizes: tokens of each item.
        capacity: most tokens of a bin.
        shares: processes among which the bins are dealt out; the number of bins is a multiple of theirs.

    Returns:
        The items of each bin, by index; a bin may be empty where there are fewer items than shares.

    Raises:
        DataError: an item is larger than a bin.
    """
    if max(sizes, default=0) > capacity:
        raise DataError(f"{max(sizes)} tokens belong together, and a micro-batch has {capacity}; raise micro_batch")
    falling = _falling(sizes)
    fitted = _first_fit(sizes, falling, capacity)
    count = max(1, -(-len(fitted) // shares)) * shares
    fitted += [[] for _ in range(count - len(fitted))]
    return _even(sizes, falling, capacity, count) or fitted


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


def _first_fit(sizes: Sequence[int], falling: Sequence[int], capacity: int) -> list[list[int]]:
    # A bin for each item, most of them never opened; above each pair of neighbours the room of the roomier one.
    leaves = 1 << (len(sizes) - 1).bit_length() if sizes else 1
    room = [capacity] * (2 * leaves)
    found: list[list[int]] = []
    for item in falling:
        at = 1
        while at < leaves:
            at *= 2
            at += room[at] < sizes[item]
        if at - leaves == len(found):
            found.append([])
        found[at - leaves].append(item)
        room[at] -= sizes[item]
        while at > 1:
            at //= 2
            room[at] = max(room[2 * at], room[2 * at + 1])
    return found


def _even(sizes: Sequence[int], falling: Sequence[int], capacity: int, count: int) -> list[list[int]]:
    """Puts each item into the emptiest bin; returns nothing if one overflows so."""
    found: list[list[int]] = [[] for _ in range(count)]
    filled = [(0, place) for place in range(count)]
    heapify(filled)
    for item in falling:
        size, place = filled[0]
        found[place].append(item)
        heapreplace(filled, (size + sizes[item], place))
    return found if max(filled)[0] <= capacity else []
