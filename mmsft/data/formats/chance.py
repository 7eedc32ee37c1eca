"""Draws that depend on a row's id alone, so that each run, process and epoch draws the same."""

import hashlib
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def number(row: str, what: str, seed: int, below: int) -> int:
    """Returns a number from 0 to `below` - 1.

    Args:
        row: the row's id.
        what: is drawn; two draws for one row are independent.
        seed: of the source.
        below: how many numbers there are.
    """
    drawn = hashlib.blake2b(f"{seed} {what} {row}".encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(drawn, "little") % below


def pick(row: str, what: str, seed: int, items: Sequence[T]) -> T:
    """Returns one of the items, each as likely."""
    return items[number(row, what, seed, len(items))]


def shuffled(row: str, what: str, seed: int, items: Sequence[T]) -> list[T]:
    """Returns the items in another order."""
    order = sorted(range(len(items)), key=lambda index: number(row, f"{what} {index}", seed, 1 << 64))
    return [items[index] for index in order]
