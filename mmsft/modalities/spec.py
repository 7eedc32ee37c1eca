"""What a modality is: how to read a medium, how many features it gives, what a blank one is, and its encoder."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmsft.types import Grid

File: TypeAlias = Path | bytes
"""A medium where it lies, or its bytes."""
Options: TypeAlias = Mapping[str, Any]
"""How a medium is read, by name: what its row says of it beside the file, a clip's ``start`` and ``end``, and by how
much it is read smaller where the row is too long; mostly empty."""


class Features(NamedTuple):
    """What an encoder makes of N media of one shape: values [N, L, width]."""

    values: Tensor

    def averaged(self, grid: Grid, to: Grid) -> "Features":
        """Returns the features of a smaller grid, each the mean of those in its part of the larger one."""
        cells = self.values.unflatten(1, (grid.t, -1))
        if to.t != grid.t:
            cells = F.adaptive_avg_pool1d(cells.flatten(2).mT, to.t).mT.unflatten(2, cells.shape[2:])
        frames = cells.unflatten(2, (grid.h, grid.w)).flatten(0, 1)
        pooled = F.adaptive_avg_pool2d(frames.permute(0, 3, 1, 2), (to.h, to.w))
        return self._replace(values=pooled.flatten(2).mT.reshape(len(self.values), to.count, -1))


class Encoder(Protocol):
    """An `nn.Module` that turns a batch of loaded media into features.

    Attributes:
        width: size of a feature; the adapter's input.
    """

    width: int

    def __call__(self, batch: Mapping[str, Tensor]) -> Features:
        """Encodes what `Modality.collate` joined; L is the `count` of the grid that `Modality.probe` gave."""
        ...


class Modality(Protocol):
    """How one kind of media is read and encoded: subclass it as a frozen dataclass, whose fields YAML can then set.

    `probe`, `load`, `blank` and `encoder` are to be written; `collate` suits most as it is. Specs are pickled to data
    workers, so weights belong into the encoder. An error is prefixed with the row and the medium: say only what is
    wrong and what to do about it. An OSError, EOFError or ValueError while reading counts as a DataError.
    """

    @abstractmethod
    def probe(self, file: File, options: Options) -> Grid:
        """Returns how many features the medium gives, from its header: planning never decodes.

        Raises:
            DataError: the header is broken, or the medium is too large to be honest.
        """

    @abstractmethod
    def load(self, file: File, options: Options) -> dict[str, Tensor]:
        """Reads one medium, in a data worker, on the CPU.

        Media whose grids and tensors' shapes are equal go through the encoder together, others apart.

        Raises:
            DataError: the medium can't be decoded.
        """

    @abstractmethod
    def blank(self, grid: Grid) -> dict[str, Tensor]:
        """Returns a medium without content, in the form of `load`, that gives the features of `grid`.

        It stands in where a model is scored without looking, and where a process has no medium of a tower that learns.
        A modality that knows one grid only may leave the argument aside.
        """

    @abstractmethod
    def encoder(self) -> nn.Module:
        """Builds the `Encoder`, with its weights; fresh ones follow from the run's seed."""

    def smaller(self, file: File, options: Options) -> Sequence[Options]:
        """Returns the ways to read the medium whole to fewer features, the largest first, for ``too_long: shrink``.

        Each is the options to read it with in place of `options`: fewer frames a second, a picture of fewer pixels. It
        is still the whole medium: what cuts a part off isn't shrinking. Where the encoder gives no fewer features,
        `probe` may return a grid `of` the encoder's: the tower then averages to it. None, unless it is written.
        """
        return ()

    def settings(self) -> str:
        """Returns what decides what `load` gives of a medium, as text: the key under which features are stored.

        The fields do; a modality whose `load` follows from a file that a field names adds what it reads there.
        """
        return repr(self)

    def augments(self) -> bool:
        """Tells whether `load` gives something else each time, so that features can't be stored."""
        return False

    def collate(self, items: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Joins loaded media of equal shapes along a new first dimension."""
        return {name: torch.stack([item[name] for item in items]) for name in items[0]}
