"""Reads the global steps of a stage, each a pure function of its number."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple
from zlib import crc32

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mmsft.data.encoding import Encoding, Share
from mmsft.data.ledger import Booked, Entry, Learned
from mmsft.data.mixture import Mixture
from mmsft.data.order import Order
from mmsft.duration import Duration
from mmsft.errors import DataError
from mmsft.types import Batch, BatchTargets, Ints, Pack, Prompts, Segment


@dataclass(frozen=True, slots=True)
class StepData:
    """This process's share of one global step.

    Attributes:
        number: counted from 0 at the stage's start.
        rows: all rows of the global step, as indices into the mixture's training rows.
        micro: micro-batches; at least one, if need be one without targets.
        entries: lines for the ledger, on rows of the share.
        learned: how many rows of the share are learned from, by source and fate.
        weight: sum of the target weights in `micro`.
        targets: number of targets in `micro`.
        tokens: number of tokens in `micro`, padding not counted.
        spared: tokens that the model needn't read, since rows share them.
        division: checksum of how the global step is divided; that of each process must be the same.
    """

    number: int
    rows: Ints
    micro: tuple[Batch, ...]
    entries: tuple[Entry, ...]
    learned: Learned
    weight: float
    targets: int
    tokens: int
    spared: int
    division: int = 0

    @property
    def used(self) -> int:
        """Rows of the share that are learned from."""
        return sum(self.learned.values())

    def pin_memory(self) -> "StepData":
        """Returns a copy from which a GPU can read without waiting; the loader calls it."""
        return replace(self, micro=tuple(batch.map(Tensor.pin_memory) for batch in self.micro))


@dataclass
class Steps(Dataset[StepData]):
    """The global steps of a stage by number.

    Attributes:
        mixture: the recipe's rows.
        encoding: how they become batches.
        seed: of the order.
        size: of a global step.
        limit: rows in the whole stage; the last step may be smaller.
        share: this process's part.
        starts: for a size in tokens, the first global row index of every step and the end of the last.
    """

    mixture: Mixture
    encoding: Encoding
    seed: int
    size: Duration
    limit: int
    share: Share = field(default_factory=Share)
    starts: Ints | None = None

    def __len__(self) -> int:
        if self.starts is not None:
            return len(self.starts) - 1
        return -(-self.limit // int(self.size.value))

    def bounds(self, number: int) -> tuple[int, int]:
        """Returns the global row indices, first and one past the last, of a step."""
        if self.starts is not None:
            return int(self.starts[number]), int(self.starts[number + 1])
        size = int(self.size.value)
        return number * size, min(self.limit, (number + 1) * size)

    def due(self, every: Duration, number: int) -> bool:
        """Tells whether a multiple of `every` is reached with the step."""
        if every.unit == "steps":
            return (number + 1) % int(every.value) == 0
        first, last = self.bounds(number)
        rows = every.value * self.mixture.epoch
        return int(first // rows) < int(last // rows)

    @cached_property
    def order(self) -> Order:
        """The order of the rows."""
        return self.mixture.order(self.seed)

    def __getitem__(self, number: int) -> StepData:
        first, last = self.bounds(number)
        rows = self.order.at(first, last)
        groups = self.mixture.groups
        together = rows if groups is None else groups[rows]
        # How a row is used is told in the first epoch: later ones would only say it again.
        told = max(0, self.mixture.epoch - first)
        work = self.encoding.work(self.mixture, self.mixture.train[rows], together.tolist(), self.share, told)
        micro = tuple(work.micro) or (_nothing(self.encoding),)
        return StepData(
            number=number,
            rows=rows,
            micro=micro,
            entries=tuple(work.entries),
            learned=work.learned,
            weight=float(sum(batch.targets.weight.sum(dtype=torch.float64).item() for batch in micro)),
            targets=sum(len(batch.targets.token) for batch in micro),
            tokens=work.tokens,
            spared=work.spared,
            division=work.division,
        )


class Sample(NamedTuple):
    """A process's share of held-out rows.

    Attributes:
        pairs: [n, 2] (source, row), those that begin alike behind one another.
        together: [n] equal for those that do.
        division: checksum of how the whole is divided; that of each process must be the same.
    """

    pairs: Ints
    together: Ints
    division: int


def sample_of(mixture: Mixture, pairs: Ints, share: Share) -> Sample:
    """Returns a process's share of held-out rows [n, 2]."""
    numbers = mixture.together(pairs)
    together = np.arange(len(pairs)) if numbers is None else numbers.astype(np.int64)
    order = np.argsort(together, kind="stable")
    mine = np.array_split(order, share.ranks)[share.rank]
    return Sample(pairs[mine], together[mine], crc32(pairs.tobytes(), crc32(order.tobytes())))


def held_out_batches(
    mixture: Mixture, encoding: Encoding, sample: Sample, booked: Booked, rows: int = 64
) -> Iterator[Batch]:
    """Yields batches of held-out rows, a few rows at a time; what becomes of them goes to `booked`."""
    for start in range(0, len(sample.pairs), rows):
        some = slice(start, start + rows)
        work = encoding.work(mixture, sample.pairs[some], sample.together[some].tolist(), Share())
        booked.learned += work.learned
        booked.entries += work.entries
        yield from work.micro


def refuse_other_rows(odds: float, what: str) -> None:
    """Looks whether all processes have divided the same rows.

    Args:
        odds: the sum of what `Ranks.odds` gives for their checksums.
        what: the rows.

    Raises:
        DataError: they haven't.
    """
    if odds:
        raise DataError(
            f"{what}: the processes don't read them alike, so that some would be lost and others taken twice; nothing "
            "of it is saved. The recipe's files, its media, the template and the tokenizer must be the same on each "
            "machine, readable, and stay as they are; mend that, and the same command goes on"
        )


def _nothing(encoding: Encoding) -> Batch:
    """Returns a batch without targets, so that every process takes part in every step."""
    nothing = torch.zeros(0, dtype=torch.int64)
    segment = Pack((Segment(0, 1),), torch.ones(1, dtype=torch.int64))
    token, seen = torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1, dtype=torch.bool)
    two_sided = encoding.encoder.sides is not None
    return Batch(
        ids=("(no row)",),
        input_ids=token,
        positions=token,
        mask=seen,
        targets=BatchTargets(nothing, nothing, torch.zeros(0), nothing),
        media={},
        pack=segment if encoding.packs and not two_sided else None,
        prompts=Prompts(token, seen, token[0]) if two_sided else None,
    )


def plan(size: Duration, total: Duration, rows: int, length: Callable[[int], int]) -> tuple[int, Ints | None]:
    """Finds where a stage ends and, where tokens are counted, where each step begins.

    Args:
        size: of a global step, in examples or tokens.
        total: duration of the stage.
        rows: rows in an epoch.
        length: tokens of the row at a global index; only asked where tokens are counted.

    Returns:
        The number of global row indices in the stage and, where tokens are counted, the step borders.

    Raises:
        DataError: tokens are counted, and no row has any.
    """
    if "tokens" not in (size.unit, total.unit):
        examples = {"epochs": rows, "steps": size.value, "examples": 1}[total.unit] * total.value
        return max(1, round(examples)), None
    borders, inside, consumed, index = [0], 0, 0, 0
    while not _over(total, index / rows, index, len(borders) - 1, consumed):
        if index == rows and not consumed:
            raise DataError("no row of the recipe can be encoded, so a step never fills; see `mmsft check`")
        count = length(index)
        full = inside and inside + count > size.value if size.unit == "tokens" else index - borders[-1] == size.value
        if full:
            borders.append(index)
            inside = 0
            continue
        inside, consumed, index = inside + count, consumed + count, index + 1
    if borders[-1] != index:
        borders.append(index)
    return index, np.array(borders, np.int64)


def _over(total: Duration, epochs: float, examples: int, steps: int, tokens: int) -> bool:
    done = {"epochs": epochs, "examples": examples, "steps": steps, "tokens": tokens}
    return done[total.unit] >= total.value


def read_steps(steps: Steps, first: int, workers: int, pin: bool) -> Iterator[StepData]:
    """Yields the steps from number `first` on, read ahead by worker processes, in order whatever their number."""
    # A tokenizer that has used its threads before the fork would warn, and may hang, in a worker.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    loader: DataLoader[StepData] = DataLoader(
        steps,
        batch_size=None,
        sampler=range(first, len(steps)),
        num_workers=workers,
        prefetch_factor=2 if workers else None,
        pin_memory=pin,
    )
    yield from loader
