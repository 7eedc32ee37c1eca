"""Media of a recipe that is looked at without a model: read as far as that goes, and a token each."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from mmsft.adapters.spec import Adapter, Layout, Slots
from mmsft.errors import ConfigError, DataError
from mmsft.modalities.picture import check_picture, read_picture
from mmsft.modalities.spec import File, Modality, Options
from mmsft.types import Grid

MODALITIES: Final = ("image", "audio", "video", "points")
"""What the rows of a recipe may show without a model that says how."""


@dataclass(frozen=True)
class Unseen(Modality):
    """A medium that nobody encodes.

    Attributes:
        what: its modality; pictures are decoded, of others only the file is looked for.
    """

    what: str

    def probe(self, file: File, options: Options) -> Grid:
        """Returns one feature; as of `Modality`."""
        if self.what == "image":
            check_picture(file)
        elif not isinstance(file, bytes) and not file.stat().st_size:
            raise DataError("the file is empty; fetch it again, or leave its row out")
        return Grid(1, 1, 1)

    def load(self, file: File, options: Options) -> dict[str, Tensor]:
        """Decodes a picture, and forgets it; as of `Modality`."""
        if self.what == "image":
            read_picture(file)
        return self.blank(Grid(1, 1, 1))

    def blank(self, grid: Grid) -> dict[str, Tensor]:
        """As of `Modality`."""
        return {"nothing": torch.zeros(1)}

    def encoder(self) -> nn.Module:
        """As of `Modality`.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("a recipe alone has no model; name a run's config")


@dataclass(frozen=True)
class OneToken(Adapter):
    """Stands for each medium by one token."""

    def layout(self, grid: Grid) -> Layout:
        """As of `Adapter`."""
        return (Slots(1),)

    def build(self, d_in: int, d_out: int) -> nn.Module:
        """As of `Adapter`.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("a recipe alone has no model; name a run's config")


def towers() -> Mapping[str, Any]:
    """Returns settings of a model's towers, one for each modality that a recipe may show."""
    module = __name__
    return {
        name: {"modality": {"kind": f"{module}:Unseen", "what": name}, "adapter": {"kind": f"{module}:OneToken"}}
        for name in MODALITIES
    }
