"""What a stage's rows are made of: their lengths, tokens by source and modality, duplicates, and how well they pack."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Final

import numpy as np

from mmsft.config import StageConfig
from mmsft.data.pack import bins
from mmsft.errors import DataError
from mmsft.run.load import Run
from mmsft.types import Encoded

BUDGETS: Final = (1024, 2048, 4096, 8192)
"""Tokens of a pack for which is told how full it gets."""
_TOGETHER: Final = 256
_STEP: Final = 512
_PARTS: Final = {"min": 0, "median": 50, "mean": None, "95 %": 95, "99 %": 99, "max": 100}


@dataclass
class SourceStats:
    """What a source's rows are made of.

    Attributes:
        name: of the source.
        lengths: [n] tokens of each row that can be used.
        learned: targets.
        slots: tokens that media fill, by modality.
        media: how many there are, by modality.
        lost: rows that can't be used.
        duplicates: rows that say what an earlier one of the stage says.
    """

    name: str
    lengths: list[int] = field(default_factory=list)
    learned: int = 0
    slots: Counter[str] = field(default_factory=Counter)
    media: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    duplicates: int = 0

    @property
    def tokens(self) -> int:
        """Of all rows."""
        return sum(self.lengths)

    def parts(self) -> dict[str, float]:
        """Returns the shortest length, the longest, and what is between."""
        if not self.lengths:
            return {}
        lengths = np.array(self.lengths)
        return {
            name: float(lengths.mean() if part is None else np.percentile(lengths, part))
            for name, part in _PARTS.items()
        }

    def as_dict(self) -> dict[str, Any]:
        """Returns the figures as JSON has them."""
        return {
            "name": self.name,
            "rows": len(self.lengths),
            "lost": self.lost,
            "duplicates": self.duplicates,
            "tokens": self.tokens,
            "learned": self.learned,
            "media": dict(self.media),
            "media_tokens": dict(self.slots),
            "length": self.parts(),
        }


@dataclass
class StageStats:
    """What a stage's rows are made of.

    Attributes:
        name: of the stage.
        sources: of its recipe.
        utilisation: by a pack's tokens: the part that rows fill, and the rows that are too long for it.
    """

    name: str
    sources: list[SourceStats]
    utilisation: dict[int, tuple[float, int]]

    def as_dict(self) -> dict[str, Any]:
        """Returns the figures as JSON has them."""
        packs = {str(budget): {"filled": part, "too_long": long} for budget, (part, long) in self.utilisation.items()}
        return {"name": self.name, "sources": [source.as_dict() for source in self.sources], "packs": packs}

    def lines(self) -> Iterator[str]:
        """Yields the figures as tables for a terminal."""
        yield f"stage {self.name}"
        whole = sum(source.tokens for source in self.sources) or 1
        heads = ("source", "rows", "lost", "same", "tokens", "part", "learned", "media", "of them")
        yield "  " + _columns(*heads)
        for it in self.sources:
            media = ", ".join(f"{count:,} {name}" for name, count in it.media.items()) or "none"
            slots = f"{sum(it.slots.values()):,} tokens" if it.slots else ""
            counts = (f"{count:,}" for count in (len(it.lengths), it.lost, it.duplicates, it.tokens))
            yield "  " + _columns(it.name, *counts, f"{it.tokens / whole:.1%}", f"{it.learned:,}", media, slots)
        yield "  tokens of a row: " + " · ".join(_PARTS)
        for it in self.sources:
            lengths = " · ".join(f"{value:,.0f}" for value in it.parts().values())
            yield f"    {it.name}: {lengths or 'no row can be used; see `mmsft data check`'}"
        for budget, (part, long) in self.utilisation.items():
            too_long = f"; {long:,} rows are longer" if long else ""
            yield f"  packs of {budget:,} tokens: {part:.1%} filled{too_long}"


def _columns(name: str, *values: str) -> str:
    return f"{name:<28.28}" + "".join(f"{value:>13}" for value in values)


def stats(run: Run, stage: StageConfig, rows: int | None = None) -> StageStats:
    """Reads a stage's rows, without decoding their media.

    Args:
        run: of which the stage is one.
        stage: whose rows are read, in training order.
        rows: at most so many; all by default.

    Raises:
        DataError: none of them can be used.
    """
    mixture, encoding = run.mixture(stage.recipe), run.encoding(stage)
    found = [SourceStats(source.name) for source in mixture.sources]
    order = mixture.order(run.order_seed(stage)).at(0, min(rows or mixture.epoch, mixture.epoch))
    seen: set[bytes] = set()
    lengths: list[int] = []
    for start in range(0, len(order), _TOGETHER):
        pairs = mixture.train[order[start : start + _TOGETHER]]
        for pair, row in zip(pairs, encoding.rows(mixture, pairs), strict=True):
            of = found[int(pair[0])]
            if not isinstance(row, Encoded):
                of.lost += 1
                continue
            lengths.append(len(row))
            of.lengths.append(len(row))
            of.learned += len(row.targets)
            for placed in row.media:
                of.media[placed.media.modality] += 1
                of.slots[placed.media.modality] += len(placed.slots)
            said = _digest(row)
            of.duplicates += said in seen
            seen.add(said)
    if not lengths:
        raise DataError(f"stage {stage.name}: none of {len(order)} rows can be used; see `mmsft data check`")
    used = [source for source in found if source.lengths or source.lost]
    return StageStats(stage.name, used, {budget: utilisation(lengths, budget) for budget in BUDGETS})


def utilisation(lengths: list[int], budget: int) -> tuple[float, int]:
    """Returns what part of packs of so many tokens rows fill, 512 rows at a time, and how many are too long."""
    fit = [length for length in lengths if length <= budget]
    packs = sum(len([pack for pack in bins(fit[at : at + _STEP], budget) if pack]) for at in range(0, len(fit), _STEP))
    return (sum(fit) / (packs * budget) if packs else 0.0), len(lengths) - len(fit)


def _digest(row: Encoded) -> bytes:
    media = repr([(placed.media.modality, placed.media.ref, placed.media.options) for placed in row.media])
    return blake2b(row.input_ids.tobytes() + media.encode(errors="surrogateescape"), digest_size=12).digest()
