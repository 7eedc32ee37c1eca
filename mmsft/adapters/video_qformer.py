"""Video-LLaMA's Q-Formers: queries that look at all frames of a medium, which know their order."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from torch import Tensor, nn

from mmsft.adapters.mlp import Linear
from mmsft.adapters.positions import FramePositions, refuse_frames
from mmsft.adapters.qformer import by_frame
from mmsft.adapters.query_transformer import BlipQueries, Queries, QueryTransformer
from mmsft.adapters.settings import above_zero, below
from mmsft.adapters.spec import Adapter, Layout, Slots
from mmsft.modalities.spec import Features
from mmsft.types import Grid

_BLIP2: Final = BlipQueries()


@dataclass(frozen=True)
class FrameQueries(Queries, Adapter):
    """A Q-Former that looks at all frames of a medium, in all of its layers; and a linear layer.

    Attributes:
        frames: of a medium at the most; each has a position that is learned.
        rms: as of `linear`.
    """

    layers: int = 2
    cross_every: int = 1
    frames: int = 32
    rms: float | None = None

    def _problems(self) -> Iterator[str]:
        yield from super()._problems()
        yield from below(1, frames=self.frames)
        yield from above_zero(rms=self.rms)

    def layout(self, grid: Grid) -> Layout:
        """Returns a slot for each query.

        Raises:
            DataError: there are more frames than positions.
        """
        refuse_frames(grid, self.frames)
        return (Slots(self.queries),)

    def build(self, d_in: int, d_out: int) -> nn.Module:
        """Builds the `FramesProjector`."""
        return FramesProjector(self, d_in, d_out)


@dataclass(frozen=True)
class AudioQFormer(FrameQueries):
    """Video-LLaMA's Q-Former for sound, of one feature a clip, and a linear layer."""

    queries: int = 8
    frames: int = 8


@dataclass(frozen=True)
class VideoQFormer(FrameQueries):
    """Video-LLaMA's Q-Formers for pictures over time, BLIP-2's for each frame and one for all; and a linear layer.

    Attributes:
        frame: settings of the one for each frame, as of `qformer`; None = the other one looks at the features.
    """

    frame: BlipQueries | None = _BLIP2

    def build(self, d_in: int, d_out: int) -> nn.Module:
        """Builds the `VideoProjector`."""
        return VideoProjector(self, d_in, d_out)


class FramesProjector(nn.Module):
    """Positions of frames, a `QueryTransformer` for all of them, and a projection to the decoder's width."""

    def __init__(self, spec: FrameQueries, d_in: int, d_out: int) -> None:
        super().__init__()
        self.positions = FramePositions(spec.frames, d_in)
        self.transformer = QueryTransformer(spec, d_in)
        self.projection = Linear(rms=spec.rms).build(spec.width, d_out)

    def forward(self, features: Features, grid: Grid) -> Tensor:
        """Features with values [N, L, d_in] → tokens [N, S, d_out]."""
        queries = self.transformer(self.positions(features.values, grid))
        tokens: Tensor = self.projection(Features(queries), Grid(1, 1, queries.shape[1]))
        return tokens


class VideoProjector(nn.Module):
    """A `QueryTransformer` for each frame, and a `FramesProjector` for all of them."""

    def __init__(self, spec: VideoQFormer, d_in: int, d_out: int) -> None:
        super().__init__()
        self.frame = None if spec.frame is None else QueryTransformer(spec.frame, d_in)
        self.video = FramesProjector(spec, d_in if spec.frame is None else spec.frame.width, d_out)

    def forward(self, features: Features, grid: Grid) -> Tensor:
        """Features with values [N, L, d_in] → tokens [N, S, d_out]."""
        if self.frame is not None:
            features = Features(by_frame(self.frame, features.values, grid))
        tokens: Tensor = self.video(features, grid)
        return tokens
