"""What became of every row: used, trimmed, dropped or failed, with the reason."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple, NoReturn, TypeAlias, get_args

from mmsft.errors import DataError, MmsftError

Fate: TypeAlias = Literal["used", "trimmed", "dropped", "failed"]
FATES: tuple[Fate, ...] = get_args(Fate)
KNOWN: Final = "known"
"""Beside a source's fates: how many of its lost rows a quarantine named."""
Learned: TypeAlias = Mapping[tuple[int, Fate], int]
"""How many rows are learned from, by number of the source and fate, which is ``used`` or ``trimmed``."""

_ENOUGH = 100
"""Rows after which a recipe of which none could be used is broken, whatever its budget."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the ledger.

    Attributes:
        row: its id.
        fate: ``dropped`` by the recipe's rules, or ``failed`` to be read; ``trimmed`` where a part of it is too long
            and left out or read smaller; ``used`` where there is something else to say.
        reason: of the fate, or of how the row is used.
        source: name of its source.
        index: its number there.
        mark: of a lost row, a hash of what it holds and of what reads it.
        known: a quarantine names it, so that it isn't read again.
    """

    row: str
    fate: Fate
    reason: str
    source: str = ""
    index: int = -1
    mark: str = ""
    known: bool = False

    @property
    def lost(self) -> bool:
        """Whether nothing is learned from the row."""
        return self.fate in ("dropped", "failed")


class Reason(NamedTuple):
    """Why rows of a source are lost or trimmed.

    Attributes:
        source: its name.
        fate: theirs.
        rows: how many rows.
        first: what is said of the first of them.
    """

    source: str
    fate: Fate
    rows: int
    first: str


def reasons(entries: Iterable[Entry]) -> list[Reason]:
    """Returns the reasons of what isn't used as it is, the most frequent first; a row that comes again counts once.

    Reasons are one that read alike without the row's id and the files, numbers and quotes in them.
    """
    first: dict[tuple[str, Fate, str], str] = {}
    rows: dict[tuple[str, Fate, str], set[str]] = {}
    for entry in entries:
        if entry.fate != "used":
            plain = re.sub(r"'[^']*'|\"[^\"]*\"|<[^<>]*>|\S*\d\S*", "…", entry.reason.replace(entry.row, "…"))
            kind = entry.source, entry.fate, plain
            first.setdefault(kind, entry.reason)
            rows.setdefault(kind, set()).add(entry.row)
    found = [Reason(*kind[:2], len(rows[kind]), text) for kind, text in first.items()]
    return sorted(found, key=lambda reason: -reason.rows)


@dataclass
class Booked:
    """What became of some rows.

    Attributes:
        learned: how many can be learned from.
        entries: lines on the others, and on how rows are used.
    """

    learned: Counter[tuple[int, Fate]] = field(default_factory=Counter)
    entries: list[Entry] = field(default_factory=list)


class Ledger:
    """Counts what became of rows, and stops the run that loses too many.

    Attributes:
        counts: by source and fate; of the lost ones also how many are `KNOWN`, which the budget doesn't count.

    Args:
        sources: the recipe's source names.
        rows: rows in an epoch of the recipe, or in the stage where it is shorter.
        budget: part of the rows that may be lost.
        counts: where a resumed stage stood.
    """

    def __init__(
        self, sources: Sequence[str], rows: int, budget: float, counts: Mapping[str, Mapping[str, int]] | None = None
    ) -> None:
        self._sources = sources
        self._rows = rows
        self.budget = budget
        self.counts = {name: Counter((counts or {}).get(name, {})) for name in sources}

    def add(self, rows: int, learned: Learned, entries: Sequence[Entry]) -> None:
        """Books the rows of one step.

        Args:
            rows: how many there are.
            learned: those that are learned from.
            entries: of the others; what is said of those that are learned from counts for nothing.

        Raises:
            DataError: more rows are lost than the budget allows, or all of the first hundred, or all that there are.
            MmsftError: the rows that are learned from and those that are lost aren't all of them.
        """
        lost = [entry for entry in entries if entry.lost]
        if sum(learned.values()) + len(lost) != rows:
            raise MmsftError(
                f"the ledger doesn't add up: of {rows} rows {sum(learned.values())} are learned from and {len(lost)} "
                "are lost; that is a mistake in mmsft, and nothing of this step is saved"
            )
        for (source, fate), count in learned.items():
            self.counts[self._sources[source]][fate] += count
        for entry in lost:
            self.counts[entry.source][entry.fate] += 1
            if entry.known:
                self.counts[entry.source][KNOWN] += 1
        if lost:
            self._check(lost)

    def _check(self, new: Sequence[Entry]) -> None:
        total = sum(self.counts.values(), Counter[str]())
        lost, used = total["dropped"] + total["failed"], total["used"] + total["trimmed"]
        seen = lost + used
        epochs = max(1, -(-seen // self._rows))
        if not used and seen >= min(self._rows, _ENOUGH):
            self._refuse(lost, seen, "so that nothing is learned", new[-1])
        unknown = [entry for entry in new if not entry.known]
        if unknown and lost - total[KNOWN] > self.budget * self._rows * epochs:
            allowed = f"more than the recipe's budget of {self.budget:.2%} of {self._rows} rows"
            self._refuse(lost - total[KNOWN], seen, allowed, unknown[-1])

    def _refuse(self, lost: int, seen: int, why: str, last: Entry) -> NoReturn:
        raise DataError(
            f"{lost} of {seen} rows seen are lost, {why}; the last one: {last.reason}\n"
            "ledger.jsonl in the run folder names each; mend or filter the rows, or raise the recipe's `budget`"
        )
