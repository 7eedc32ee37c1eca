"""Reads all of a stage's rows without training on them: what becomes of each, and whether serving agrees."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from mmsft.config import StageConfig
from mmsft.data.chat import ChatEncoder
from mmsft.data.encoding import Encoding
from mmsft.data.ledger import FATES, Entry
from mmsft.data.mixture import Mixture
from mmsft.data.tree import threads
from mmsft.run.load import Run
from mmsft.types import Conversation, Encoded, Ints

_TOGETHER: Final = 64
_TOLD: Final = 10_000
_LINTED: Final = 64
_SHOWN: Final = 10


@dataclass
class Reason:
    """Why rows are lost or trimmed.

    Attributes:
        fate: theirs.
        text: of the first of them.
        rows: how many.
    """

    fate: str
    text: str
    rows: int = 0


@dataclass
class StageAudit:
    """What was found of a stage's rows.

    Attributes:
        name: of the stage.
        budget: part of the rows that may be lost.
        fates: rows by source and fate; held-out rows count too.
        tokens: that all rows have, before what they share is spared.
        learned: targets among them.
        media: distinct ones that were read, by modality.
        reasons: of rows that are lost or trimmed, the most frequent first.
        problems: what is wrong with the template.
    """

    name: str
    budget: float
    fates: dict[str, Counter[str]]
    tokens: int = 0
    learned: int = 0
    media: Counter[str] = field(default_factory=Counter)
    reasons: list[Reason] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """How many there are."""
        return sum(count for fates in self.fates.values() for count in fates.values())

    @property
    def lost(self) -> int:
        """Rows that nothing is learned from."""
        return sum(fates[fate] for fates in self.fates.values() for fate in ("dropped", "failed"))

    @property
    def ok(self) -> bool:
        """Whether training could go through all of the rows."""
        return self.lost <= self.budget * self.rows and not self.problems

    def as_dict(self) -> dict[str, Any]:
        """Returns what was found as JSON has it."""
        return {
            "name": self.name,
            "ok": self.ok,
            "rows": self.rows,
            "lost": self.lost,
            "budget": self.budget,
            "sources": {source: {fate: fates[fate] for fate in FATES} for source, fates in self.fates.items()},
            "tokens": self.tokens,
            "learned": self.learned,
            "media": dict(self.media),
            "reasons": [{"fate": it.fate, "rows": it.rows, "first": it.text} for it in self.reasons],
            "problems": self.problems,
        }

    def lines(self) -> Iterator[str]:
        """Yields what was found for a terminal."""
        yield f"stage {self.name}: {self.rows:,} rows, {self.tokens:,} tokens, {self.learned:,} of them learned"
        for source, fates in self.fates.items():
            yield f"  {source}: " + ", ".join(f"{fates[fate]:,} {fate}" for fate in FATES)
        if self.media:
            yield "  media read: " + ", ".join(f"{count:,} {name}" for name, count in self.media.items())
        for reason in self.reasons[:_SHOWN]:
            yield f"  {reason.fate}, {reason.rows:,} rows, the first: {reason.text}"
        if len(self.reasons) > _SHOWN:
            yield f"  and {len(self.reasons) - _SHOWN} reasons more; --json has all"
        yield from (f"  problem: {problem}" for problem in self.problems)
        if self.lost > self.budget * self.rows:
            yield f"  problem: {self.lost:,} rows are lost, more than the budget of {self.budget:.2%}"


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


def _stage(run: Run, stage: StageConfig, decode: bool, tell: Callable[[str], object]) -> StageAudit:
    mixture = run.mixture(stage.recipe)
    names = [source.name for source in mixture.sources]
    found = StageAudit(stage.name, stage.recipe.budget, {name: Counter() for name in names})
    pairs = np.concatenate([mixture.train, mixture.held_out])
    reasons: dict[tuple[str, str], Reason] = {}
    kinds: dict[str, set[str | bytes]] = defaultdict(set)
    encoder, encoding = run.encoder(stage.recipe), run.encoding(stage)
    for start in range(0, len(pairs), _TOGETHER):
        some = pairs[start : start + _TOGETHER]
        rows = _read(encoding, mixture, some, decode)
        for pair, row in zip(some, rows, strict=True):
            entry = Entry(row.id, "trimmed" if row.trimmed else "used", row.note) if isinstance(row, Encoded) else row
            found.fates[names[int(pair[0])]][entry.fate] += 1
            if entry.fate != "used":
                _count(reasons, entry)
            if isinstance(row, Encoded):
                found.tokens += len(row)
                found.learned += len(row.targets)
                for placed in row.media:
                    kinds[placed.media.modality].add(placed.media.ref)
                if start < _LINTED:
                    found.problems += _lint(encoder, mixture.conversation(pair), row)
        if start // _TOLD != (start + _TOGETHER) // _TOLD:
            tell(f"stage {stage.name}: {start + len(some):,} of {len(pairs):,} rows read")
    found.media = Counter({name: len(refs) for name, refs in kinds.items()})
    found.reasons = sorted(reasons.values(), key=lambda reason: -reason.rows)
    found.problems = found.problems[:_SHOWN]
    return found


def _read(encoding: Encoding, mixture: Mixture, pairs: Ints, decode: bool) -> list[Encoded | Entry]:
    """Returns what each of the rows becomes."""
    if not decode:
        return encoding.rows(mixture, pairs)
    read = encoding.read(mixture, pairs)
    lost = iter(read.lost)
    return [read.rows[number] if number in read.rows else next(lost) for number in range(len(pairs))]


def _count(reasons: dict[tuple[str, str], Reason], entry: Entry) -> None:
    """Counts rows of one reason together: without their names, numbers and quotes it reads alike."""
    plain = re.sub(r"'[^']*'|\"[^\"]*\"|\S*\d\S*", "…", entry.reason.partition(": ")[2])
    found = reasons.setdefault((entry.fate, plain), Reason(entry.fate, entry.reason))
    found.rows += 1


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
