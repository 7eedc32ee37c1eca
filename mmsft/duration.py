"""Amounts of training, as people write them: "2 epochs", "4000 steps", "1e9 tokens", "256 examples"."""

import math
import re
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

Unit: TypeAlias = Literal["epochs", "steps", "tokens", "examples"]
UNITS: tuple[Unit, ...] = get_args(Unit)
_FORM = re.compile(r"\s*([0-9][0-9_]*(?:\.[0-9]+)?(?:[eE]\+?[0-9]+)?)\s*([a-zA-Z]+)\s*")


@dataclass(frozen=True, slots=True)
class Duration:
    """A number and its unit.

    Attributes:
        value: greater than 0; whole unless the unit is epochs.
        unit: what is counted. Tokens are tokens that the model reads; examples are leaf threads.
    """

    value: float
    unit: Unit

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
            raise ValueError(f"{text!r} is not an amount; write a number and one of {', '.join(UNITS)}: '2 epochs'")
        value = float(match[1].replace("_", ""))
        if not 0 < value < math.inf:
            raise ValueError(f"{text!r}: the number must be greater than 0")
        if known != "epochs" and value != int(value):
            raise ValueError(f"{text!r}: {known} must be whole")
        return cls(value, known)

    def __str__(self) -> str:
        number = f"{self.value:g}" if self.value < 1e6 else f"{self.value:.12g}"
        return f"{number} {self.unit[:-1] if self.value == 1 else self.unit}"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a stage has come: whole steps, and what was consumed in them."""

    steps: int = 0
    epochs: float = 0.0
    tokens: int = 0
    examples: int = 0

    def of(self, duration: Duration) -> float:
        """Returns the part of `duration` that is done; 1 or more means that it is over."""
        return float(getattr(self, duration.unit)) / duration.value
