"""The Perceiver resampler: learned latents that look at all features of a medium and become its tokens (Flamingo)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmsft.adapters.mlp import Linear
from mmsft.adapters.positions import FramePositions, refuse_frames
from mmsft.adapters.settings import above_zero, below, refuse
from mmsft.adapters.spec import Adapter, Layout, Slots
from mmsft.modalities.spec import Features
from mmsft.types import Grid


@dataclass(frozen=True)
class Resampler(Adapter):
    """A Perceiver resampler and a linear layer; its sizes are OpenFlamingo's and Otter's.

    Attributes:
        latents: tokens of a medium, however many features it has.
        depth: of its blocks: attention and feed-forward.
        heads: of the attention.
        head_width: of each of them.
        mult: feed-forward layers are so many times as wide as the features.
        activation: ``gelu`` as in OpenFlamingo and Otter, ``relu`` as in Idefics.
        qk_norm: normalises queries and keys, as Idefics of 80B does.
        frames: adds a learned position to each frame of a medium, which may have so many; None = frames have no order.
        rms: as of `linear`.
    """

    latents: int = 64
    depth: int = 6
    heads: int = 8
    head_width: int = 64
    mult: int = 4
    activation: Literal["gelu", "relu"] = "gelu"
    qk_norm: bool = False
    frames: int | None = None
    rms: float | None = None

    def __post_init__(self) -> None:
        refuse(self._problems())

    def _problems(self) -> Iterator[str]:
        yield from below(1, latents=self.latents, depth=self.depth, heads=self.heads, head_width=self.head_width)
        yield from below(1, mult=self.mult, frames=self.frames)
        yield from above_zero(rms=self.rms)

    def layout(self, grid: Grid) -> Layout:
        """Returns a slot for each latent.

        Raises:
            DataError: there are more frames than positions.
        """
        refuse_frames(grid, self.frames)
        return (Slots(self.latents),)

    def build(self, d_in: int, d_out: int) -> nn.Module:
        """Builds the `ResamplerProjector`."""
        return ResamplerProjector(self, d_in, d_out)


class ResamplerProjector(nn.Module):
    """Frames' positions, a `PerceiverResampler`, and a projection to the decoder's width."""

    def __init__(self, spec: Resampler, d_in: int, d_out: int) -> None:
        super().__init__()
        self.positions = FramePositions(spec.frames, d_in) if spec.frames else None
        self.resampler = PerceiverResampler(spec, d_in)
        self.projection = Linear(rms=spec.rms).build(d_in, d_out)

    def forward(self, features: Features, grid: Grid) -> Tensor:
        """Features with values [N, L, d_in] → tokens [N, S, d_out]."""
        x_NLD = features.values if self.positions is None else self.positions(features.values, grid)
        latents_NSD = self.resampler(x_NLD)
        tokens: Tensor = self.projection(Features(latents_NSD), Grid(1, 1, latents_NSD.shape[1]))
        return tokens


class PerceiverResampler(nn.Module):
    """Blocks in which latents attend to the features and to themselves, at the features' width (Flamingo, A.1.1)."""

    def __init__(self, spec: Resampler, width: int) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(spec.latents, width))
        self.blocks = nn.ModuleList(PerceiverBlock(spec, width) for _ in range(spec.depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, x_NLD: Tensor) -> Tensor:
        """Features [N, L, D] → latents [N, S, D]."""
        latents_NSD: Tensor = self.latents.expand(len(x_NLD), -1, -1)
        for block in self.blocks:
            latents_NSD = block(x_NLD, latents_NSD)
        latents_NSD = self.norm(latents_NSD)
        return latents_NSD


class PerceiverBlock(nn.Module):
    """Attention and feed-forward, each added to the latents."""

    def __init__(self, spec: Resampler, width: int) -> None:
        super().__init__()
        inner = spec.heads * spec.head_width
        self.heads = spec.heads
        self.norm_features = nn.LayerNorm(width)
        self.norm_latents = nn.LayerNorm(width)
        self.norm_queries = nn.LayerNorm(spec.head_width) if spec.qk_norm else nn.Identity()
        self.norm_keys = nn.LayerNorm(spec.head_width) if spec.qk_norm else nn.Identity()
        self.queries = nn.Linear(width, inner, bias=False)
        self.keys = nn.Linear(width, inner, bias=False)
        self.values = nn.Linear(width, inner, bias=False)
        self.out = nn.Linear(inner, width, bias=False)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, spec.mult * width, bias=False),
            {"gelu": nn.GELU, "relu": nn.ReLU}[spec.activation](),
            nn.Linear(spec.mult * width, width, bias=False),
        )

    def forward(self, x_NLD: Tensor, latents_NSD: Tensor) -> Tensor:
        """Features [N, L, D] and latents [N, S, D] → latents."""
        normed_NSD = self.norm_latents(latents_NSD)
        seen = torch.cat([self.norm_features(x_NLD), normed_NSD], dim=1)
        attended = F.scaled_dot_product_attention(
            self.norm_queries(self._headed(self.queries(normed_NSD))),
            self.norm_keys(self._headed(self.keys(seen))),
            self._headed(self.values(seen)),
        )
        latents_NSD = latents_NSD + self.out(attended.transpose(1, 2).flatten(2))
        latents_NSD = latents_NSD + self.feed_forward(latents_NSD)
        return latents_NSD

    def _headed(self, x_NSI: Tensor) -> Tensor:
        headed: Tensor = x_NSI.unflatten(2, (self.heads, -1))
        return headed.transpose(1, 2)
