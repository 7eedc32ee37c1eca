"""Touch as a modality: pressures [T, cells] over time, of any length T, in a .npy file."""

from dataclasses import dataclass
from io import BytesIO

import numpy as np
from torch import Tensor, from_numpy, nn, zeros

from mmsft import DataError, Features, File, Grid, Modality, Options


@dataclass(frozen=True)
class Tactile(Modality):
    cells: int = 16  # a field is a setting in YAML

    def probe(self, file: File, options: Options) -> Grid:
        return Grid(-(-len(self._series(file)) // 4), 1, 1)  # a feature for every 4 time steps begun

    def load(self, file: File, options: Options) -> dict[str, Tensor]:
        return {"pressure": from_numpy(self._series(file).astype(np.float32))}

    def blank(self, grid: Grid) -> dict[str, Tensor]:
        return {"pressure": zeros(4 * grid.t, self.cells)}

    def encoder(self) -> nn.Module:
        return Encoder(nn.Conv1d(self.cells, Encoder.width, kernel_size=7, stride=4, padding=3), nn.GELU())

    def _series(self, file: File) -> np.ndarray:  # a file is mapped: no more than its header is read yet
        series: np.ndarray = np.load(BytesIO(file)) if isinstance(file, bytes) else np.load(file, mmap_mode="r")
        if series.ndim != 2 or series.shape[1] != self.cells or not len(series):
            raise DataError(f"expected pressures [T, {self.cells}], got {list(series.shape)}; record the touch again")
        return series


class Encoder(nn.Sequential):
    width = 64

    def forward(self, batch: dict[str, Tensor]) -> Features:
        return Features(super().forward(batch["pressure"].mT).mT)
