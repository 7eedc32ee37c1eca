"""The Q-Former of BLIP-2: learned queries that look at the features of each frame and become its tokens."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from mmsft.adapters.mlp import Linear
from mmsft.adapters.query_transformer import WHAT, BlipQueries, QueryTransformer
from mmsft.adapters.settings import above_zero
from mmsft.adapters.spec import Adapter, Layout, Slots
from mmsft.modalities.pretrained import fill, read_tensors
from mmsft.modalities.spec import Features
from mmsft.types import Grid


@dataclass(frozen=True)
class QFormer(BlipQueries, Adapter):
    """A Q-Former that looks at each frame by itself, and a linear layer.

    Attributes:
        projection: the linear layer, too, begins as that of `weights`, which was made for their language model.
        rms: as of `linear`.
    """

    projection: bool = False
    rms: float | None = None

    def _problems(self) -> Iterator[str]:
        yield from super()._problems()
        yield from above_zero(rms=self.rms)
        if self.projection and (self.weights is None or self.rms is not None):
            yield "projection: it is loaded from `weights`, and without `rms`; name them, or leave it out"

    def layout(self, grid: Grid) -> Layout:
        """Returns a slot for each query, a frame's behind those of the frame before it."""
        return (Slots(grid.t * self.queries),)

    def build(self, d_in: int, d_out: int) -> nn.Module:
        """Builds the `QFormerProjector`."""
        return QFormerProjector(self, d_in, d_out)


class QFormerProjector(nn.Module):
    """A `QueryTransformer` for each frame, and a projection to the decoder's width."""

    def __init__(self, spec: QFormer, d_in: int, d_out: int) -> None:
        super().__init__()
        self.frame = QueryTransformer(spec, d_in)
        self.projection = Linear(rms=spec.rms).build(spec.width, d_out)
        if spec.projection and spec.weights is not None:
            tensors = read_tensors(WHAT, spec.weights, "language_projection.")
            fill(self.projection.get_submodule("layers"), tensors, WHAT, spec.weights)

    def forward(self, features: Features, grid: Grid) -> Tensor:
        """Features with values [N, L, d_in] → tokens [N, S, d_out]."""
        queries = by_frame(self.frame, features.values, grid)
        tokens: Tensor = self.projection(Features(queries), Grid(1, 1, queries.shape[1]))
        return tokens


def by_frame(frame: QueryTransformer, x_NLD: Tensor, grid: Grid) -> Tensor:
    """Looks at each frame by itself: features [N, L, D] → queries [N, t · Q, width], a frame's behind one another."""
    frames: Tensor = x_NLD.unflatten(1, (grid.t, -1)).flatten(0, 1)
    queries: Tensor = frame(frames).unflatten(0, (-1, grid.t))
    return queries.flatten(1, 2)
