"""Reads the global steps of a stage, each a pure function of its number."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mmsft.data.chat import ChatEncoder, NothingToLearn, TooLong
from mmsft.data.collate import Loaded, collate
from mmsft.data.ledger import Fate, LostRow
from mmsft.data.media_reader import MediaReader
from mmsft.data.mixture import Mixture
from mmsft.data.order import rows_at
from mmsft.data.tree import threads
from mmsft.duration import Duration
from mmsft.errors import DataError
from mmsft.types import Batch, BatchTargets, Encoded, Ints, Media


@dataclass(frozen=True, slots=True)
class Share:
    """Which part of each global step a process takes."""

    rank: int = 0
    ranks: int = 1


@dataclass(frozen=True, slots=True)
class StepData:
    """This process's share of one global step.

    Attributes:
        number: counted from 0 at the stage's start.
        rows: all rows of the global step, as indices into the mixture's training rows.
        micro: micro-batches; at least one, if need be one without targets.
        lost: rows of the share that can't be learned from.
        used: rows of the share that are learned from.
        weight: sum of the target weights in `micro`.
        targets: number of targets in `micro`.
        tokens: number of tokens in `micro`, padding not counted.
    """

    number: int
    rows: Ints
    micro: tuple[Batch, ...]
    lost: tuple[LostRow, ...]
    used: int
    weight: float
    targets: int
    tokens: int

    def pin_memory(self) -> "StepData":
        """Returns a copy from which a GPU can read without waiting; the loader calls it."""
        return replace(self, micro=tuple(batch.map(Tensor.pin_memory) for batch in self.micro))


@dataclass(frozen=True)
class Encoding:
    """How rows become batches: picklable, so that data workers hold one."""

    encoder: ChatEncoder
    reader: MediaReader
    micro_tokens: int

    def row(self, mixture: Mixture, pair: Ints) -> Encoded:
        """Reads and encodes the row (source, row); media are probed, not loaded.

        Raises:
            DataError: the row can't be learned from.
        """
        return self.encoder.encode(mixture.conversation(pair), source=int(pair[0]))

    def load(self, row: Encoded, known: Loaded) -> dict[Media, dict[str, Tensor]]:
        """Loads those of the row's media that aren't in `known`.

        Raises:
            DataError: one can't be decoded.
        """
        return {item.media: self.reader.load(item.media) for item in row.media if item.media not in known}

    def batches(self, rows: Sequence[Encoded], loaded: Loaded) -> Iterator[Batch]:
        """Yields padded micro-batches of the rows' threads, longest first, each within `micro_tokens`."""
        chains = sorted((chain for row in rows for chain in threads(row)), key=len, reverse=True)
        while chains:
            count = max(1, self.micro_tokens // len(chains[0]))
            yield collate(chains[:count], self.reader, loaded)
            chains = chains[count:]


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
        rows = every.value * len(self.mixture.train)
        return int(first // rows) < int(last // rows)

    def __getitem__(self, number: int) -> StepData:
        rows = rows_at(self.seed, len(self.mixture.train), *self.bounds(number))
        mine = rows[self.share.rank :: self.share.ranks]
        encoded, loaded, lost = read_rows(self.mixture, self.encoding, self.mixture.train[mine])
        micro = tuple(self.encoding.batches(encoded, loaded)) or (_nothing(),)
        return StepData(
            number=number,
            rows=rows,
            micro=micro,
            lost=tuple(lost),
            used=len(encoded),
            weight=float(sum(batch.targets.weight.sum(dtype=torch.float64).item() for batch in micro)),
            targets=sum(len(batch.targets.token) for batch in micro),
            tokens=sum(len(row) for row in encoded),
        )


def held_out_batches(
    mixture: Mixture, encoding: Encoding, pairs: Ints, lost: list[LostRow], rows: int = 64
) -> Iterator[Batch]:
    """Yields batches of held-out rows, a few rows at a time; those that can't be scored go to `lost`."""
    for start in range(0, len(pairs), rows):
        encoded, loaded, unread = read_rows(mixture, encoding, pairs[start : start + rows])
        lost += unread
        yield from encoding.batches(encoded, loaded)


def read_rows(
    mixture: Mixture, encoding: Encoding, pairs: Ints
) -> tuple[list[Encoded], dict[Media, Mapping[str, Tensor]], list[LostRow]]:
    """Encodes the rows [n, 2] and loads their media; returns also the rows that can't be learned from."""
    encoded: list[Encoded] = []
    loaded: dict[Media, Mapping[str, Tensor]] = {}
    lost: list[LostRow] = []
    for pair in pairs:
        try:
            row = encoding.row(mixture, pair)
            loaded.update(encoding.load(row, loaded))
            encoded.append(row)
        except (TooLong, NothingToLearn) as error:
            lost.append(_lost(mixture.row_id(pair), "dropped", error))
        except DataError as error:
            lost.append(_lost(mixture.row_id(pair), "failed", error))
    return encoded, loaded, lost


def _lost(row: str, fate: Fate, error: DataError) -> LostRow:
    """Books a lost row; modalities and templates don't know whose row they fail on."""
    reason = str(error)
    return LostRow(row, fate, reason if row in reason else f"{row}: {reason}")


def _nothing() -> Batch:
    """Returns a batch without targets, so that every process takes part in every step."""
    nothing = torch.zeros(0, dtype=torch.int64)
    return Batch(
        ids=("(no row)",),
        input_ids=torch.zeros(1, 1, dtype=torch.int64),
        positions=torch.zeros(1, 1, dtype=torch.int64),
        mask=torch.ones(1, 1, dtype=torch.bool),
        targets=BatchTargets(nothing, nothing, torch.zeros(0), nothing),
        media={},
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
