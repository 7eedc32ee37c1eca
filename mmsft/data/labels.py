"""Classes that rows hold by number: a template sees the number, whoever wants text gets the name."""

from functools import total_ordering
from typing import Any


class Label(int):
    """A class: its number, for templates that choose an answer by it, with its name.

    Attributes:
        name: where text is wanted.
    """

    name: str

    def __new__(cls, number: int, name: str) -> "Label":
        """Makes a class of its number and its name."""
        label = super().__new__(cls, number)
        label.name = name
        return label

    def __getnewargs__(self) -> tuple[int, str]:  # type: ignore[override] # typeshed: int has one argument
        return int(self), self.name


@total_ordering
class Hidden:
    """A class that a test set doesn't tell, by a number that none has, such as -1.

    It compares like its number, as templates ask for it, and indexes nothing: the last of several answers isn't its.
    """

    def __init__(self, number: int) -> None:
        self._number = number

    def __eq__(self, other: object) -> bool:
        return self._number == other

    def __lt__(self, other: object) -> bool:
        return isinstance(other, int) and self._number < other

    def __hash__(self) -> int:
        return hash(self._number)

    def __repr__(self) -> str:
        return str(self._number)


def spoken(value: Any) -> str:
    """Returns a column's value as a text, a class by its name."""
    return value.name if isinstance(value, Label) else str(value)
