"""Pictures of any resolution: the whole at the tower's size, and beside it tiles of that size which show more of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, cast

import torch
from torch import Tensor, nn

from mmsft.errors import ConfigError, DataError
from mmsft.modalities.inner import PictureSpec, picture_of
from mmsft.modalities.picture import Frame, picture_size, read_picture
from mmsft.modalities.spec import Encoder, Features, File, Modality, Options
from mmsft.types import Grid

TILES: Final = "tiles"
"""The option that says of how many tiles a picture is made at the most."""
_LLAVA_NEXT: Final = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))


@dataclass(frozen=True)
class Tiles(Modality):
    """Pictures as LLaVA-NeXT reads them: an overview, then the features of all tiles as one grid without its padding.

    Each of the two goes through the adapter by itself. `end_of: row` of the adapter puts LLaVA-NeXT's newline behind
    the rows of the second.

    Attributes:
        image: the tower of overview and tiles, a mapping with a `kind` for pictures; LLaVA-NeXT has `aspect: stretch`.
        grids: rows and columns of tiles to choose from: the one in which most of a picture's pixels are shown, and of
            these the one with least padding.
    """

    image: PictureSpec
    grids: tuple[tuple[int, int], ...] = _LLAVA_NEXT

    def __post_init__(self) -> None:
        if not self.grids or min(min(grid) for grid in self.grids) < 1:
            raise ConfigError("grids: write rows and columns of tiles, each 1 or more, e.g. [[1, 2], [2, 1]]")

    def probe(self, file: File, options: Options) -> Grid:
        """Returns the overview's features, and those of the tiles that show some of the picture."""
        width, height = picture_size(file)
        return _Cut.of(self._frame(), height, width, self._chosen(height, width, options)).grid

    def smaller(self, file: File, options: Options) -> Sequence[Options]:
        """Returns the numbers of tiles that are fewer, to none at all."""
        width, height = picture_size(file)
        rows, columns = self._chosen(height, width, options) or (0, 0)
        counts = {0, *(rows * columns for rows, columns in self.grids)}
        return [{**options, TILES: count} for count in sorted(counts, reverse=True) if count < rows * columns]

    def load(self, file: File, options: Options) -> dict[str, Tensor]:
        """Returns ``pixels`` [1 + tiles, 3, H, W], and which of all their features are kept: ``keep`` [L], in order."""
        image = read_picture(file)
        frame = self._frame()
        chosen = self._chosen(image.height, image.width, options)
        pixels = [frame.pixels(image)[None], *([frame.tiles(image, *chosen)] if chosen else [])]
        return {"pixels": torch.cat(pixels), "keep": _Cut.of(frame, image.height, image.width, chosen).keep}

    def blank(self, grid: Grid) -> dict[str, Tensor]:
        """Returns a picture of the mean colour, each tile of which gives the overview's features."""
        frame = self._frame()
        high, wide = frame.grid.h, frame.grid.w
        keep = [
            (torch.arange(part.h)[:, None] % high * wide + torch.arange(part.w) % wide).flatten()
            for part in grid.parts or (grid,)
        ]
        return {"pixels": frame.blank()[None], "keep": torch.cat(keep)}

    def encoder(self) -> nn.Module:
        """Loads the tower."""
        return TilesEncoder(picture_of(self.image).encoder())

    def settings(self) -> str:
        """Returns the fields, and what the weights' own settings say of pictures."""
        return f"{self!r} {self._frame()!r}"

    def _frame(self) -> Frame:
        frame = picture_of(self.image).frame()
        if frame.grid.h == 1:
            raise ConfigError(f"tiles: the features of {self.image.kind} are no rectangle; leave its class token out")
        return frame

    def _chosen(self, height: int, width: int, options: Options) -> tuple[int, int] | None:
        """Returns rows and columns of tiles for a picture; None = the overview is all."""
        most = options.get(TILES)
        if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 0):
            raise DataError(f"{TILES}: write how many tiles a picture has at the most, got {most!r}")
        frame = self._frame()
        possible = [grid for grid in self.grids if most is None or grid[0] * grid[1] <= most]

        def shown(grid: tuple[int, int]) -> tuple[int, int]:
            tall, wide = grid[0] * frame.height, grid[1] * frame.width
            scale = min(wide / width, tall / height)
            pixels = min(int(width * scale) * int(height * scale), width * height)
            return pixels, pixels - tall * wide

        return max(possible, key=shown, default=None)


@dataclass(frozen=True)
class _Cut:
    """The features that are kept of overview and tiles.

    Attributes:
        grid: of them.
        keep: [L] their indices among those of the overview and of all tiles, each tile's rows one after the other.
    """

    grid: Grid
    keep: Tensor

    @classmethod
    def of(cls, frame: Frame, height: int, width: int, tiles: tuple[int, int] | None) -> "_Cut":
        """Returns what is kept of a picture of this size in so many rows and columns of tiles."""
        each = frame.grid
        overview = replace(each, overview=True)
        keep = torch.arange(each.count)
        if tiles is None:
            return cls(Grid.joined(overview), keep)
        # Number of a feature by row of tiles, row in the tile, column of tiles, column in the tile.
        index = (torch.arange(tiles[0] * tiles[1] * each.count) + each.count).unflatten(0, (*tiles, each.h, each.w))
        rows, columns = tiles[0] * each.h, tiles[1] * each.w
        top, left = _padding(height, width, rows, columns)
        kept = index.transpose(1, 2).reshape(rows, columns)[top : rows - top, left : columns - left]
        return cls(Grid.joined(overview, Grid(1, *kept.shape)), torch.cat([keep, kept.flatten()]))


def _padding(height: int, width: int, rows: int, columns: int) -> tuple[int, int]:
    """Returns how many rows and columns of features on either side show no picture."""
    if width / height > columns / rows:
        return (rows - max(1, int(round(height * columns / width, 7)))) // 2, 0
    return 0, (columns - max(1, int(round(width * rows / height, 7)))) // 2


class TilesEncoder(nn.Module):
    """Encodes overview and tiles with one tower, and keeps what shows the picture."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower
        self.width: int = cast(Encoder, tower).width

    def forward(self, batch: Mapping[str, Tensor]) -> Features:
        """Encodes ``pixels`` [N, 1 + tiles, 3, H, W]; ``keep`` [N, L] are the features [N, L, width] that it gives."""
        pixels, keep = batch["pixels"], batch["keep"]
        features: Features = self.tower({"pixels": pixels.flatten(0, 1)})
        all_NFD = features.values.unflatten(0, pixels.shape[:2]).flatten(1, 2)
        return Features(all_NFD.gather(1, keep[:, :, None].expand(-1, -1, all_NFD.shape[-1])))
