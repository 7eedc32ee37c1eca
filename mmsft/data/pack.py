"""Divides the trees of a global step among packs: as few as can be, and of like size."""

from collections.abc import Sequence

from mmsft.errors import DataError


def bins(sizes: Sequence[int], capacity: int, shares: int = 1) -> list[list[int]]:
    """Puts items into bins.

    First-fit-decreasing finds how many bins it takes; filling the emptiest first then makes them alike, so that no
    process waits for another, and no micro-batch for memory that the others don't need.

    Args:
        sizes: tokens of each item.
        capacity: most tokens of a bin.
        shares: processes that take every so-manieth bin; the number of bins is a multiple of theirs.

    Returns:
        The items of each bin, by index; a bin may be empty where there are fewer items than shares.

    Raises:
        DataError: an item is larger than a bin.
    """
    if max(sizes, default=0) > capacity:
        raise DataError(f"{max(sizes)} tokens belong together, and a micro-batch has {capacity}; raise micro_batch")
    falling = sorted(range(len(sizes)), key=lambda item: (-sizes[item], item))
    fitted = _first_fit(sizes, falling, capacity)
    count = max(1, -(-len(fitted) // shares)) * shares
    fitted += [[] for _ in range(count - len(fitted))]
    return _even(sizes, falling, capacity, count) or fitted


def _first_fit(sizes: Sequence[int], falling: Sequence[int], capacity: int) -> list[list[int]]:
    found: list[list[int]] = []
    room: list[int] = []
    for item in falling:
        place = next((place for place, left in enumerate(room) if left >= sizes[item]), len(found))
        if place == len(found):
            found.append([])
            room.append(capacity)
        found[place].append(item)
        room[place] -= sizes[item]
    return found


def _even(sizes: Sequence[int], falling: Sequence[int], capacity: int, count: int) -> list[list[int]]:
    """Puts each item into the emptiest bin; returns nothing if one overflows so."""
    found: list[list[int]] = [[] for _ in range(count)]
    filled = [0] * count
    for item in falling:
        place = min(range(count), key=filled.__getitem__)
        found[place].append(item)
        filled[place] += sizes[item]
    return found if max(filled) <= capacity else []
