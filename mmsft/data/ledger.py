"""What became of every row: used, dropped or failed, with the reason."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn, TypeAlias, get_args

from mmsft.errors import DataError

Fate: TypeAlias = Literal["used", "dropped", "failed"]
FATES: tuple[Fate, ...] = get_args(Fate)


@dataclass(frozen=True, slots=True)
class Loss:
    """A row that was not learned from: ``dropped`` by the recipe's rules, or ``failed`` to be read."""

    row: str
    fate: Fate
    reason: str


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

    def add(self, used: int, losses: Sequence[Loss]) -> None:
        """Books the rows of one step.

        Raises:
            DataError: more rows are lost than the budget allows, or all that were seen.
        """
        self.counts["used"] += used
        for loss in losses:
            self.counts[loss.fate] += 1
        lost = self.counts["dropped"] + self.counts["failed"]
        seen = lost + self.counts["used"]
        epochs = max(1, -(-seen // self._rows))
        if losses and not self.counts["used"]:
            self._refuse(lost, seen, "so that nothing is learned", losses[-1])
        if losses and lost > self.budget * self._rows * epochs:
            allowed = f"more than the recipe's budget of {self.budget:.2%} of {self._rows} rows"
            self._refuse(lost, seen, allowed, losses[-1])

    def _refuse(self, lost: int, seen: int, why: str, last: Loss) -> NoReturn:
        raise DataError(
            f"{lost} of {seen} rows seen are lost, {why}; the last one: {last.reason}\n"
            "ledger.jsonl in the run folder names each; mend or filter the rows, or raise the recipe's `budget`"
        )

    def summary(self) -> str:
        """Returns e.g. ``38575 rows used, 2 dropped, 1 failed``."""
        return f"{self.counts['used']} rows used, {self.counts['dropped']} dropped, {self.counts['failed']} failed"
