"""Adapters that map each feature to one token, of all features or of fewer: LLaVA's, InternVL's, Idefics3's."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmsft.adapters import grids
from mmsft.adapters.grids import EndOf
from mmsft.adapters.settings import above_zero, below, refuse
from mmsft.adapters.spec import Adapter, Layout, Slots
from mmsft.modalities.spec import Features
from mmsft.types import Grid


@dataclass(frozen=True)
class Linear(Adapter):
    """One linear layer.

    Attributes:
        time: averages so many neighbouring frames first; the last ones may be fewer. None = all frames.
        pool: averages the grid of each frame to `pool` × `pool` features first, or to as many as it has where these are
            fewer; None = all features.
        stride: averages squares of `stride` × `stride` features in place of `pool`; those at the edges may be smaller.
        shuffle: makes one feature of each square of `shuffle` × `shuffle` features side by side, in place of `pool`.
        norm: normalises the features (LayerNorm) first, for towers whose features lie far from unit scale.
        bias: the layers have one.
        rms: scales each token to this root mean square, times a gain that learns from there; None = no scaling. The
            decoder's own embeddings' RMS lets a fresh projector begin where words lie.
        end_of: puts a token that learns behind each ``row``, each ``frame`` or the whole ``medium``; None = none. In a
            picture that stands as a whole beside its tiles rows have none.
    """

    time: int | None = None
    pool: int | None = None
    stride: int | None = None
    shuffle: int | None = None
    norm: bool = False
    bias: bool = True
    rms: float | None = None
    end_of: EndOf | None = None

    def __post_init__(self) -> None:
        refuse(self._problems())

    def _problems(self) -> Iterator[str]:
        squares = {"pool": self.pool, "stride": self.stride, "shuffle": self.shuffle}
        yield from below(1, time=self.time, **squares)
        taken = [name for name, value in squares.items() if value is not None]
        if len(taken) > 1:
            yield f"{' and '.join(taken)} each make fewer features of a frame; take one of them"
        yield from above_zero(rms=self.rms)

    def layout(self, grid: Grid) -> Layout:
        """Returns one slot for each feature that is left, and for each end.

        Raises:
            DataError: with `shuffle`, squares don't cover the grid.
        """
        return (Slots(self.reduced(grid).count + self.ends(grid)),)

    def ends(self, grid: Grid) -> int:
        """Returns how many ends stand among the tokens."""
        if self.end_of is None or (self.end_of == "row" and grid.overview):
            return 0
        return grids.ends(self.reduced(grid), self.end_of)

    def reduced(self, grid: Grid) -> Grid:
        """Returns the grid of the features that are left to project."""
        if self.time is not None:
            grid = grids.over_time_grid(grid, self.time)
        if self.pool is not None:
            return Grid(grid.t, min(grid.h, self.pool), min(grid.w, self.pool))
        if self.stride is not None:
            return grids.over_squares_grid(grid, self.stride)
        return grid if self.shuffle is None else grids.side_by_side_grid(grid, self.shuffle)

    def build(self, d_in: int, d_out: int) -> nn.Module:
        """Builds the `Projector`."""
        return Projector(self, d_in, d_out, depth=1)


@dataclass(frozen=True)
class Mlp2xGelu(Linear):
    """Two linear layers with GELU between them; the hidden width is the decoder's."""

    def build(self, d_in: int, d_out: int) -> nn.Module:
        """Builds the `Projector`."""
        return Projector(self, d_in, d_out, depth=2)


@dataclass(frozen=True)
class Mlp(Linear):
    """Any number of linear layers with GELU between them; hidden widths are the decoder's.

    Attributes:
        depth: how many.
    """

    depth: int = field(kw_only=True)

    def _problems(self) -> Iterator[str]:
        yield from super()._problems()
        yield from below(1, depth=self.depth)

    def build(self, d_in: int, d_out: int) -> nn.Module:
        """Builds the `Projector`."""
        return Projector(self, d_in, d_out, self.depth)


class Projector(nn.Module):
    """Makes fewer features, normalises, projects, scales, ends: what the spec asks for of these, in this order."""

    def __init__(self, spec: Linear, d_in: int, d_out: int, depth: int) -> None:
        super().__init__()
        self.spec = spec
        width = d_in * (spec.shuffle or 1) ** 2
        self.norm = nn.LayerNorm(width) if spec.norm else None
        self.layers = _layers(width, d_out, depth, spec.bias)
        self.gain = None if spec.rms is None else nn.Parameter(torch.full((d_out,), spec.rms))
        # As large as a token: LLaVA-NeXT begins so, too.
        scale = spec.rms or 1 / math.sqrt(d_out)
        self.end = nn.Parameter(torch.randn(d_out) * scale) if spec.end_of else None

    def forward(self, features: Features, grid: Grid) -> Tensor:
        """Features with values [N, L, d_in] → tokens [N, S, d_out]."""
        x_NLD = self._reduced(features.values, grid)
        if self.norm is not None:
            x_NLD = self.norm(x_NLD)
        tokens: Tensor = self.layers(x_NLD)
        if self.gain is not None:
            tokens = F.rms_norm(tokens, tokens.shape[-1:]) * self.gain
        if self.end is not None and (ends := self.spec.ends(grid)):
            tokens = grids.with_ends(tokens, self.end, ends)
        return tokens

    def _reduced(self, x_NLD: Tensor, grid: Grid) -> Tensor:
        spec = self.spec
        if spec.time is not None:
            x_NLD, grid = grids.over_time(x_NLD, grid, spec.time), grids.over_time_grid(grid, spec.time)
        if spec.pool is not None:
            return Features(x_NLD).averaged(grid, Grid(grid.t, min(grid.h, spec.pool), min(grid.w, spec.pool))).values
        if spec.stride is not None:
            return grids.over_squares(x_NLD, grid, spec.stride)
        return x_NLD if spec.shuffle is None else grids.side_by_side(x_NLD, grid, spec.shuffle)


def _layers(d_in: int, d_out: int, depth: int, bias: bool) -> nn.Module:
    first = nn.Linear(d_in, d_out, bias)
    rest = (layer for _ in range(depth - 1) for layer in (nn.GELU(), nn.Linear(d_out, d_out, bias)))
    return first if depth == 1 else nn.Sequential(first, *rest)
