"""What a modality is: how to read a medium, how many features it gives, what a blank one is, and its encoder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from mmsft.types import Grid, Media, Part

File: TypeAlias = Path | bytes
"""A medium where it lies, or its bytes."""
Options: TypeAlias = Mapping[str, Any]


class Features(NamedTuple):
    """What an encoder makes of N media of one shape: values [N, L, width] and, where items differ, a mask [N, L]."""

    values: Tensor
    mask: Tensor | None = None


class Encoder(Protocol):
    """An `nn.Module` that turns a batch of loaded media into features."""

    width: int

    def __call__(self, batch: Mapping[str, Tensor]) -> Features:
        """Encodes the media that `Modality.collate` joined."""
        ...


class Modality(Protocol):
    """A frozen, picklable spec that YAML can state: subclass it as a frozen dataclass.

    `probe`, `load`, `blank` and `encoder` are to be written; the others have defaults that suit most modalities.
    """

    def probe(self, file: File, options: Options) -> Grid:
        """Returns how many features the medium gives, from its header: planning never decodes.

        Raises:
            DataError: the header is broken, or the medium is too large to be honest.
        """
        ...

    def load(self, file: File, options: Options) -> dict[str, Tensor]:
        """Reads one medium, in a data worker, on the CPU.

        Raises:
            DataError: the medium can't be decoded.
        """
        ...

    def blank(self) -> dict[str, Tensor]:
        """Returns a medium without content, in the form of `load`."""
        ...

    def encoder(self) -> nn.Module:
        """Builds the `Encoder`, with its weights."""
        ...

    def expand(self, part: Media) -> tuple[Part, ...]:
        """Returns what stands for the medium in the conversation: a video may become frames and sound."""
        return (part,)

    def collate(self, items: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Joins loaded media of equal shapes along a new first dimension."""
        return {name: torch.stack([item[name] for item in items]) for name in items[0]}
