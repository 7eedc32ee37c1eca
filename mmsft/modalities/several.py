"""Several picture towers side by side: their features of one picture, joined along the width."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmsft.errors import ConfigError
from mmsft.modalities.image import SIDE
from mmsft.modalities.inner import PictureSpec, picture_of
from mmsft.modalities.picture import check_picture, read_picture
from mmsft.modalities.spec import Encoder, Features, File, Modality, Options
from mmsft.types import Grid


@dataclass(frozen=True)
class Several(Modality):
    """Picture towers of which each sees the picture as it was trained to.

    Attributes:
        images: the towers, mappings with a `kind` for pictures. The features are as many as the first one's; those of
            another grid are interpolated to it (bilinear).
    """

    images: tuple[PictureSpec, ...]

    def __post_init__(self) -> None:
        if len(self.images) < 2:
            raise ConfigError("images: name two towers or more; one alone is a kind of its own")

    def probe(self, file: File, options: Options) -> Grid:
        """Checks the header; every picture gives the same features, unless they are averaged."""
        check_picture(file)
        return self._grids()[0].averaged(options.get(SIDE, 1))

    def smaller(self, file: File, options: Options) -> Sequence[Options]:
        """Returns the sides of squares whose features may be averaged."""
        self._grids()
        return picture_of(self.images[0]).smaller(file, options)

    def load(self, file: File, options: Options) -> dict[str, Tensor]:
        """Returns the pixels [3, H, W] for each tower, by its number."""
        image = read_picture(file)
        return {f"pixels{number}": picture_of(spec).frame().pixels(image) for number, spec in enumerate(self.images)}

    def blank(self, grid: Grid) -> dict[str, Tensor]:
        """Returns a picture of each tower's mean colour."""
        return {f"pixels{number}": picture_of(spec).frame().blank() for number, spec in enumerate(self.images)}

    def encoder(self) -> nn.Module:
        """Loads the towers."""
        return SeveralEncoder([picture_of(spec).encoder() for spec in self.images], self._grids())

    def settings(self) -> str:
        """Returns the fields, and what the weights' own settings say of pictures."""
        return f"{self!r} {[picture_of(spec).frame() for spec in self.images]!r}"

    def _grids(self) -> list[Grid]:
        grids = [picture_of(spec).frame().grid for spec in self.images]
        flat = [spec.kind for spec, grid in zip(self.images, grids, strict=True) if grid.h == 1]
        if flat and len(set(grids)) > 1:
            raise ConfigError(f"several: the features of {flat[0]} are no rectangle; leave its class token out")
        return grids


class SeveralEncoder(nn.Module):
    """Encodes a picture with each tower, and joins the features of each place."""

    def __init__(self, towers: Sequence[nn.Module], grids: Sequence[Grid]) -> None:
        super().__init__()
        self.towers = nn.ModuleList(towers)
        self.width: int = sum(cast(Encoder, tower).width for tower in towers)
        self._grids = tuple(grids)

    def forward(self, batch: Mapping[str, Tensor]) -> Features:
        """Encodes ``pixels0`` [N, 3, H, W], ``pixels1`` and so on."""
        found = [tower({"pixels": batch[f"pixels{number}"]}).values for number, tower in enumerate(self.towers)]
        fitted = [self._fitted(values, grid) for values, grid in zip(found, self._grids, strict=True)]
        return Features(torch.cat(fitted, dim=2))

    def _fitted(self, x_NLD: Tensor, grid: Grid) -> Tensor:
        first = self._grids[0]
        if (grid.h, grid.w) == (first.h, first.w):
            return x_NLD
        x_NDHW = x_NLD.mT.unflatten(2, (grid.h, grid.w))
        return F.interpolate(x_NDHW, (first.h, first.w), mode="bilinear").flatten(2).mT
