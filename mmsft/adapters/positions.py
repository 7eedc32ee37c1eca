"""Tells an adapter which frame a feature is of, by a position that is learned for each frame."""

import torch
from torch import Tensor, nn

from mmsft.errors import DataError
from mmsft.types import Grid


class FramePositions(nn.Module):
    """A position for each of so many frames, added to its features."""

    def __init__(self, frames: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(frames, width))

    def forward(self, x_NLD: Tensor, grid: Grid) -> Tensor:
        """Features [N, L, D] → the same, with the positions of their frames."""
        return x_NLD + self.weight[: grid.t].repeat_interleave(x_NLD.shape[1] // grid.t, dim=0)


def refuse_frames(grid: Grid, frames: int | None) -> None:
    """Compares a medium's frames with the positions there are; None = it needs none.

    Raises:
        DataError: there are too few.
    """
    if frames is not None and grid.t > frames:
        raise DataError(
            f"it has {grid.t} frames, and the adapter positions for {frames}; read fewer frames of it, or raise the "
            "adapter's `frames`"
        )
