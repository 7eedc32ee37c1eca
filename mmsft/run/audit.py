"""Reads all of a stage's rows without training on them: what becomes of each, and whether serving agrees."""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from mmsft.config import StageConfig
from mmsft.data import quarantine
from mmsft.data.chat import ChatEncoder
from mmsft.data.encoding import Encoding, fate_of
from mmsft.data.ledger import KNOWN, Entry, reasons
from mmsft.data.mixture import Mixture
from mmsft.data.tree import threads
from mmsft.errors import ConfigError
from mmsft.run.load import Run
from mmsft.run.outcome import Outcome, Rows
from mmsft.types import Conversation, Encoded, Ints

_TOGETHER: Final = 64
_TOLD: Final = 10_000
_LINTED: Final = 64
_SHOWN: Final = 10


@dataclass
class StageAudit:
    """What was found of a stage's rows.

    Attributes:
        name: of the stage.
        budget: part of the rows that may be lost.
        outcome: what became of the rows.
        lost: the entries of those that nothing is learned from.
        tokens: that all rows have, before what they share is spared.
        learned: targets among them.
        media: distinct ones that were read, by modality.
        problems: what is wrong with the template, and rows lost beyond the budget.
    """

    name: str
    budget: float
    outcome: Outcome
    lost: list[Entry]
    tokens: int
    learned: int
    media: dict[str, int]
    problems: list[str]

    @property
    def rows(self) -> int:
        """How many there are."""
        return self.outcome.trained.total + self.outcome.held_out.total

    @property
    def ok(self) -> bool:
        """Whether training could go through all of the rows."""
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        """Returns what was found as JSON has it."""
        return {
            "name": self.name,
            "ok": self.ok,
            "rows": self.rows,
            "lost": len(self.lost),
            "budget": self.budget,
            **self.outcome.as_dict(),
            "tokens": self.tokens,
            "learned": self.learned,
            "media": self.media,
            "problems": self.problems,
        }

    def lines(self) -> Iterator[str]:
        """Yields what was found for a terminal."""
        yield f"stage {self.name}: {self.rows:,} rows, {self.tokens:,} tokens, {self.learned:,} of them learned"
        yield from self.outcome.lines()
        if self.media:
            yield "  media read: " + ", ".join(f"{count:,} {name}" for name, count in self.media.items())
        yield from (f"  problem: {problem}" for problem in self.problems)


@dataclass(frozen=True)
class Audit:
    """What was found of a run's rows."""

    stages: tuple[StageAudit, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return all(stage.ok for stage in self.stages)

    def as_dict(self) -> dict[str, Any]:
        """Returns what was found as JSON has it."""
        return {"ok": self.ok, "stages": [stage.as_dict() for stage in self.stages]}

    def text(self) -> str:
        """Returns what was found for a terminal."""
        lines = [line for stage in self.stages for line in stage.lines()]
        return "\n".join([*lines, "ready to train" if self.ok else "not ready"])


def audit(run: Run, *, decode: bool = True, tell: Callable[[str], object] = lambda _: None) -> Audit:
    """Reads all rows of all stages, those that are held out too.

    Args:
        run: whose stages read them.
        decode: also decode the media; else only their headers are read.
        tell: takes lines on how far it is.

    Raises:
        MmsftError: a source can't be opened.
    """
    return Audit(tuple(_stage(run, stage, decode, tell) for stage in run.config.stages))


def write_quarantine(found: Audit, file: Path) -> None:
    """Writes the rows that are lost, so that runs needn't read them.

    Raises:
        ConfigError: the file can't be written.
    """
    lines = [json.dumps(quarantine.line(entry), ensure_ascii=False) for stage in found.stages for entry in stage.lost]
    aside = file.with_name(f".{file.name}.aside")
    try:
        aside.write_text("".join(f"{line}\n" for line in dict.fromkeys(lines)), encoding="utf-8")
        os.replace(aside, file)
    except OSError as error:
        raise ConfigError(f"{file}: can't be written: {error.strerror}; name another file") from None


def _stage(run: Run, stage: StageConfig, decode: bool, tell: Callable[[str], object]) -> StageAudit:
    mixture, budget = run.mixture(stage.recipe), stage.recipe.budget
    total = len(mixture.train) + len(mixture.held_out)

    def told(done: int) -> None:
        tell(f"stage {stage.name}: {done:,} of {total:,} rows read")

    reader = _Reader(mixture, run.encoding(stage), decode, told)
    found = Outcome(reader.rows(mixture.train), reader.rows(mixture.held_out))
    beyond = [
        f"{rows.lost:,} of {rows.total:,} {what} are lost, more than the budget of {budget:.2%}"
        for rows, what in [(found.trained, "rows"), (found.held_out, "held-out rows")]
        if rows.lost > budget * rows.total
    ]
    media = {name: len(refs) for name, refs in reader.media.items()}
    problems = [*reader.problems[:_SHOWN], *beyond]
    return StageAudit(stage.name, budget, found, reader.lost, reader.tokens, reader.learned, media, problems)


@dataclass
class _Reader:
    """Reads the rows of a stage, and counts what is in them; the rest as of `StageAudit`.

    Attributes:
        decode: media too.
        tell: takes how many rows were read.
        media: refs by modality.
        done: how many rows were read.
    """

    mixture: Mixture
    encoding: Encoding
    decode: bool
    tell: Callable[[int], object]
    tokens: int = 0
    learned: int = 0
    media: dict[str, set[str | bytes]] = field(default_factory=lambda: defaultdict(set))
    lost: list[Entry] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    done: int = 0

    def rows(self, pairs: Ints) -> Rows:
        """Returns what becomes of rows [n, 2] (source, row)."""
        counts: dict[str, Counter[str]] = {source.name: Counter() for source in self.mixture.sources}
        noted: list[Entry] = []
        for start in range(0, len(pairs), _TOGETHER):
            some = pairs[start : start + _TOGETHER]
            for pair, row in zip(some, _read(self.encoding, self.mixture, some, self.decode), strict=True):
                of_source = counts[self.mixture.sources[int(pair[0])].name]
                if isinstance(row, Encoded):
                    of_source[fate_of(row)] += 1
                    noted += self.encoding.noted(self.mixture, pair, row)
                    self._count(row, pair)
                else:
                    of_source.update([row.fate, *([KNOWN] if row.known else [])])
                    noted.append(row)
            if self.done // _TOLD != (self.done + len(some)) // _TOLD:
                self.tell(self.done + len(some))
            self.done += len(some)
        self.lost += [entry for entry in noted if entry.lost]
        return Rows(counts, reasons(noted))

    def _count(self, row: Encoded, pair: Ints) -> None:
        self.tokens += len(row)
        self.learned += len(row.targets)
        for placed in row.media:
            self.media[placed.media.modality].add(placed.media.ref)
        if self.done < _LINTED:
            self.problems += _lint(self.encoding.encoder, self.mixture.conversation(pair), row)


def _read(encoding: Encoding, mixture: Mixture, pairs: Ints, decode: bool) -> list[Encoded | Entry]:
    """Returns what each of the rows becomes."""
    if not decode:
        return encoding.rows(mixture, pairs)
    read = encoding.read(mixture, pairs)
    lost = iter(read.lost)
    return [read.rows[number] if number in read.rows else next(lost) for number in range(len(pairs))]


def _lint(encoder: ChatEncoder, talk: Conversation, row: Encoded) -> Iterator[str]:
    """Yields what is wrong with how the template writes a row: a reply without a learned end, or another prompt."""
    stops = set(encoder.stop_ids)
    if not stops & set(row.targets.token.tolist()):
        told = ", ".join(repr(encoder.tokenizer.decode([id])) for id in sorted(stops)) or "none"
        yield (
            f"{row.id}: no token that ends a reply is learned (the template's: {told}), so that the trained model "
            "would not stop; use a template that ends replies"
        )
    path = talk.threads()[0]
    replies = [at for at, index in enumerate(path) if talk.turns[index].role == "assistant" and at]
    if not replies or row.trimmed or row.two_sided:
        return
    prompt = encoder.prompt(talk.chain(path[: replies[0]])).input_ids.tolist()
    if prompt not in [thread.input_ids.tolist()[: len(prompt)] for thread in threads(row)]:
        yield f"{row.id}: serving writes its prompt otherwise than training; see `mmsft data show`"
