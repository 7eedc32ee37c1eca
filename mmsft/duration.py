"""Amounts of training, as people write them: "2 epochs", "4000 steps", "1e9 tokens", "256 examples"."""

import math
import re
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from mmsft.errors import suggest

Unit: TypeAlias = Literal["epochs", "steps", "tokens", "examples"]
UNITS: tuple[Unit, ...] = get_args(Unit)
_FORM = re.compile(r"\s*([0-9][0-9_]*(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?)\s*([a-zA-Z]+)\s*")


@dataclass(frozen=True, slots=True)
class Duration:
    """A number and its unit.

    Attributes:
        value: greater than 0; whole unless the unit is epochs.
        unit: what is counted. Examples are rows; tokens are those of rows by themselves, also where rows share some.
    """

    value: float
    unit: Unit

    def __post_init__(self) -> None:
        if not 0 < self.value < math.inf:
            raise ValueError(f"{self.value!r} {self.unit}: the number must be greater than 0")
        if self.unit != "epochs" and self.value != int(self.value):
            raise ValueError(f"{self.value!r} {self.unit}: {self.unit} must be whole")

    @classmethod
    def parse(cls, text: str) -> "Duration":
        """Reads e.g. ``"1.5 epochs"``; the singular is fine too.

        Raises:
            ValueError: not a positive number and a known unit, or a fraction of something that has none.
        """
        match = _FORM.fullmatch(text)
        unit = match[2].lower().rstrip("s") + "s" if match else ""
        known = next((name for name in UNITS if name == unit), None)
        if match is None or known is None:
            hint = suggest(unit, UNITS) if match else ""
            raise ValueError(
                f"{text!r} is not an amount{hint}; write a number and one of {', '.join(UNITS)}: '2 epochs'"
            )
        return cls(float(match[1].replace("_", "")), known)

    def __str__(self) -> str:
        short = f"{self.value:g}"
        number = short if float(short) == self.value else repr(self.value).removesuffix(".0")
        return f"{number.replace('e+0', 'e').replace('e+', 'e')} {self.unit[:-1] if self.value == 1 else self.unit}"
