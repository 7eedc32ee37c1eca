"""Makes fewer features of a grid: averages over time and squares, squares side by side; and puts ends between them."""

from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from mmsft.errors import DataError
from mmsft.types import Grid

EndOf: TypeAlias = Literal["row", "frame", "medium"]


def over_time(x_NLD: Tensor, grid: Grid, frames: int) -> Tensor:
    """Averages so many neighbouring frames; the last ones may be fewer."""
    x_NDTS = x_NLD.unflatten(1, (grid.t, -1)).permute(0, 3, 1, 2)
    return F.avg_pool2d(x_NDTS, (frames, 1), ceil_mode=True).flatten(2).transpose(1, 2)


def over_time_grid(grid: Grid, frames: int) -> Grid:
    """Returns the grid of what `over_time` gives."""
    return Grid(-(-grid.t // frames), grid.h, grid.w)


def over_squares(x_NLD: Tensor, grid: Grid, square: int) -> Tensor:
    """Averages squares of `square` × `square` features of each frame; those at the far edges may be smaller."""
    return _features(F.avg_pool2d(_frames(x_NLD, grid), square, ceil_mode=True), grid)


def over_squares_grid(grid: Grid, square: int) -> Grid:
    """Returns the grid of what `over_squares` gives."""
    return Grid(grid.t, -(-grid.h // square), -(-grid.w // square))


def side_by_side(x_NLD: Tensor, grid: Grid, square: int) -> Tensor:
    """Makes one feature [square² · D] of each square of a frame (space to depth, also called pixel shuffle).

    In it the square's features follow one another row by row, as in transformers' Idefics3 and InternVL.
    """
    small = side_by_side_grid(grid, square)
    x: Tensor = x_NLD.unflatten(1, (small.t, small.h, square, small.w, square))
    return x.transpose(3, 4).flatten(4).flatten(1, 3)


def side_by_side_grid(grid: Grid, square: int) -> Grid:
    """Returns the grid of what `side_by_side` gives.

    Raises:
        DataError: squares don't cover it.
    """
    if grid.h % square or grid.w % square:
        raise DataError(
            f"shuffle: a frame of {grid.h} by {grid.w} features doesn't divide into squares of {square} by {square}; "
            "take a tower or size of pictures that does (without class token), or `stride`, whose squares may be cut"
        )
    return Grid(grid.t, grid.h // square, grid.w // square)


def ends(grid: Grid, of: EndOf) -> int:
    """Returns how many rows, frames or media there are."""
    return {"row": grid.t * grid.h, "frame": grid.t, "medium": 1}[of]


def with_ends(x_NLD: Tensor, end_D: Tensor, count: int) -> Tensor:
    """Divides features evenly into `count` runs, and puts an end behind each."""
    runs = x_NLD.unflatten(1, (count, -1))
    end = end_D.to(x_NLD.dtype).expand(len(x_NLD), count, 1, -1)
    return torch.cat([runs, end], dim=2).flatten(1, 2)


def _frames(x_NLD: Tensor, grid: Grid) -> Tensor:
    """Returns each frame's features as they lie in it, [N · t, D, h, w]."""
    frames: Tensor = x_NLD.unflatten(1, (grid.t, grid.h, grid.w)).flatten(0, 1)
    return frames.permute(0, 3, 1, 2)


def _features(frames: Tensor, grid: Grid) -> Tensor:
    """Returns frames [N · t, D, h, w] as features [N, t · h · w, D]."""
    features: Tensor = frames.flatten(2).transpose(1, 2).unflatten(0, (-1, grid.t))
    return features.flatten(1, 2)
