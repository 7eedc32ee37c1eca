"""Adapters that map each feature to one token: LLaVA's linear layer, and LLaVA-1.5's two layers with GELU."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmsft.adapters.spec import Adapter, Layout, Slots
from mmsft.modalities.spec import Features
from mmsft.types import Grid


@dataclass(frozen=True)
class Linear(Adapter):
    """One linear layer.

    Attributes:
        pool: averages the grid of each frame to `pool` × `pool` features first; None = all features.
        norm: normalises the features (LayerNorm) first, for towers whose features lie far from unit scale.
        rms: scales each token to this root mean square, times a gain that learns from there; None = no scaling. The
            decoder's own embeddings' RMS lets a fresh projector begin where words lie.
    """

    pool: int | None = None
    norm: bool = False
    rms: float | None = None

    def __post_init__(self) -> None:
        if self.pool is not None and self.pool < 1:
            raise ValueError(f"pool: at least 1 feature a side, got {self.pool}")
        if self.rms is not None and not self.rms > 0:
            raise ValueError(f"rms: must be greater than 0, got {self.rms}")

    def layout(self, grid: Grid) -> Layout:
        """Returns one slot a feature, after pooling."""
        return (Slots(grid.count if self.pool is None else grid.t * self.pool**2),)

    def build(self, d_in: int, d_out: int) -> nn.Module:
        """Builds the `Projector`."""
        return Projector(self, nn.Linear(d_in, d_out), d_in, d_out)


@dataclass(frozen=True)
class Mlp2xGelu(Linear):
    """Two linear layers with GELU between them; the hidden width is the decoder's."""

    def build(self, d_in: int, d_out: int) -> nn.Module:
        """Builds the `Projector`."""
        layers = nn.Sequential(nn.Linear(d_in, d_out), nn.GELU(), nn.Linear(d_out, d_out))
        return Projector(self, layers, d_in, d_out)


class Projector(nn.Module):
    """Pools, normalises, projects, scales: what the spec asks for of these, in this order."""

    def __init__(self, spec: Linear, layers: nn.Module, d_in: int, d_out: int) -> None:
        super().__init__()
        self.pool = spec.pool
        self.norm = nn.LayerNorm(d_in) if spec.norm else None
        self.layers = layers
        self.gain = None if spec.rms is None else nn.Parameter(torch.full((d_out,), spec.rms))

    def forward(self, features: Features, grid: Grid) -> Tensor:
        """Features with values [N, L, d_in] → tokens [N, S, d_out]."""
        x_NLD = features.values
        if self.pool is not None:
            x_NLD = _pooled(x_NLD, grid, self.pool)
        if self.norm is not None:
            x_NLD = self.norm(x_NLD)
        tokens: Tensor = self.layers(x_NLD)
        return tokens if self.gain is None else F.rms_norm(tokens, tokens.shape[-1:]) * self.gain


def _pooled(x_NLD: Tensor, grid: Grid, side: int) -> Tensor:
    frames = x_NLD.unflatten(1, (grid.t, grid.h, grid.w)).flatten(0, 1)
    pooled = F.adaptive_avg_pool2d(frames.permute(0, 3, 1, 2), side)
    return pooled.flatten(2).transpose(1, 2).reshape(x_NLD.shape[0], grid.t * side**2, x_NLD.shape[2])
