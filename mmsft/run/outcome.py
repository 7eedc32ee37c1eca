"""What became of a stage's rows, by source: the same in the terminal, in the log and of `mmsft data check`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mmsft.data.ledger import FATES, KNOWN, Reason

_SHOWN: Final = 3
"""Reasons of a source that a terminal shows."""

Counts = Mapping[str, Mapping[str, int]]
"""Rows by source and fate; `KNOWN` counts those of the lost ones that a quarantine named."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows that were trained on, or that were held out.

    Attributes:
        counts: of them.
        reasons: why some are lost or trimmed, the most frequent first.
    """

    counts: Counts
    reasons: Sequence[Reason]

    @property
    def total(self) -> int:
        """How many there are."""
        return sum(_sum(counts) for counts in self.counts.values())

    @property
    def lost(self) -> int:
        """How many nothing is learned from, without those that a quarantine named: what the budget counts."""
        return sum(_of(it, "dropped") + _of(it, "failed") - _of(it, KNOWN) for it in self.counts.values())

    def as_dict(self) -> dict[str, Any]:
        """Returns the rows as JSON has them; sources of which there were none are left out."""
        sources = {
            name: {**{fate: _of(counts, fate) for fate in FATES}, "rows": _sum(counts), KNOWN: _of(counts, KNOWN)}
            for name, counts in self.counts.items()
            if _sum(counts)
        }
        return {"sources": sources, "reasons": [reason._asdict() for reason in self.reasons]}

    @classmethod
    def read(cls, value: Mapping[str, Any]) -> "Rows":
        """Returns what `as_dict` gave."""
        return cls(value["sources"], [Reason(**reason) for reason in value["reasons"]])

    def lines(self, what: str = "") -> Iterator[str]:
        """Yields a line for each source, with the most frequent reasons of each below it.

        Args:
            what: said behind the source's name, e.g. that its rows are held out.
        """
        for name, counts in self.counts.items():
            if not _sum(counts):
                continue
            known = f", {_of(counts, KNOWN):,} of them in quarantine" if _of(counts, KNOWN) else ""
            yield (
                f"  {name}{what}: "
                + ", ".join(f"{_of(counts, fate):,} {fate}" for fate in FATES)
                + known
                + (f", of {_sum(counts):,} rows")
            )
            told = [reason for reason in self.reasons if reason.source == name]
            for reason in told[:_SHOWN]:
                yield f"    {reason.fate}, {reason.rows:,} row{'s' * (reason.rows > 1)}, the first: {reason.first}"
            if len(told) > _SHOWN:
                yield f"    and {len(told) - _SHOWN} more"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a stage's rows; those that are held out apart."""

    trained: Rows
    held_out: Rows

    def as_dict(self) -> dict[str, Any]:
        """Returns the rows as JSON has them."""
        return {"trained": self.trained.as_dict(), "held_out": self.held_out.as_dict()}

    @classmethod
    def read(cls, value: Mapping[str, Any]) -> "Outcome":
        """Returns what `as_dict` gave."""
        return cls(Rows.read(value["trained"]), Rows.read(value["held_out"]))

    def lines(self) -> Iterator[str]:
        """Yields the rows for a terminal."""
        yield from self.trained.lines()
        yield from self.held_out.lines(", held out")


def _of(counts: Mapping[str, int], what: str) -> int:
    return counts.get(what, 0)


def _sum(counts: Mapping[str, int]) -> int:
    return sum(_of(counts, fate) for fate in FATES)
