"""What became of every row: used, trimmed, dropped or failed, with the reason."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn, TypeAlias, get_args

from mmsft.errors import DataError

Fate: TypeAlias = Literal["used", "trimmed", "dropped", "failed"]
FATES: tuple[Fate, ...] = get_args(Fate)
_ENOUGH = 100
"""Rows after which a recipe of which none could be used is broken, whatever its budget."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the ledger.

    Attributes:
        row: its id.
        fate: ``dropped`` by the recipe's rules, or ``failed`` to be read; ``trimmed`` where a part of it is too long
            and left out; ``used`` where there is something else to say.
        reason: of the fate, or of how the row is used.
    """

    row: str
    fate: Fate
    reason: str

    @property
    def lost(self) -> bool:
        """Whether nothing is learned from the row."""
        return self.fate in ("dropped", "failed")


class Ledger:
    """Counts what became of a stage's rows, and stops the run that loses too many.

    Args:
        rows: rows in an epoch of the recipe, or in the stage where it is shorter.
        budget: part of the rows that may be lost.
        counts: where a resumed stage stood.
    """

    def __init__(self, rows: int, budget: float, counts: Mapping[str, int] | None = None) -> None:
        self._rows = rows
        self.budget = budget
        self.counts: Counter[str] = Counter(counts or {})

    def add(self, used: int, entries: Sequence[Entry], trimmed: int = 0) -> None:
        """Books the rows of one step.

        Args:
            used: rows that were learned from.
            entries: of the others; what is said of those that were learned from counts for nothing.
            trimmed: those of the used ones that were trimmed.

        Raises:
            DataError: more rows are lost than the budget allows, or all of the first hundred, or all that there are.
        """
        self.counts["used"] += used - trimmed
        if trimmed:
            self.counts["trimmed"] += trimmed
        lost = [entry for entry in entries if entry.lost]
        for row in lost:
            self.counts[row.fate] += 1
        so_far = self.counts["dropped"] + self.counts["failed"]
        learned = self.counts["used"] + self.counts["trimmed"]
        seen = so_far + learned
        epochs = max(1, -(-seen // self._rows))
        if lost and not learned and seen >= min(self._rows, _ENOUGH):
            self._refuse(so_far, seen, "so that nothing is learned", lost[-1])
        if lost and so_far > self.budget * self._rows * epochs:
            allowed = f"more than the recipe's budget of {self.budget:.2%} of {self._rows} rows"
            self._refuse(so_far, seen, allowed, lost[-1])

    def _refuse(self, lost: int, seen: int, why: str, last: Entry) -> NoReturn:
        raise DataError(
            f"{lost} of {seen} rows seen are lost, {why}; the last one: {last.reason}\n"
            "ledger.jsonl in the run folder names each; mend or filter the rows, or raise the recipe's `budget`"
        )
