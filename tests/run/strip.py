"""A modality of several frames: a picture whose squares, from left to right, are its frames."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from mmsft.modalities.picture import read_picture
from mmsft.modalities.spec import Features, File, Modality, Options
from mmsft.types import Grid


@dataclass(frozen=True)
class Strip(Modality):
    """Frames of 8 × 8 pixels, which give 2 × 2 features each."""

    def probe(self, file: File, options: Options) -> Grid:
        return Grid(read_picture(file).width // 8, 2, 2)

    def load(self, file: File, options: Options) -> dict[str, Tensor]:
        pixels = torch.from_numpy(np.array(read_picture(file))).float() / 255
        return {"frames": pixels.unflatten(1, (-1, 8)).permute(1, 3, 0, 2).contiguous()}

    def blank(self, grid: Grid) -> dict[str, Tensor]:
        return {"frames": torch.zeros(grid.t, 3, 8, 8)}

    def encoder(self) -> nn.Module:
        return StripEncoder()


class StripEncoder(nn.Module):
    width = 6

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, self.width, 4, 4)

    def forward(self, batch: dict[str, Tensor]) -> Features:
        frames = batch["frames"]
        features: Tensor = self.conv(frames.flatten(0, 1)).flatten(2).transpose(1, 2)
        return Features(features.reshape(len(frames), -1, self.width))
