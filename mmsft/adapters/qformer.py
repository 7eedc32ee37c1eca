"""The Q-Former of BLIP-2 and InstructBLIP: learned queries that look at each frame's features, and what is asked."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor, nn

from mmsft.adapters.instruction import BESIDE, ids_of, load_tokenizer
from mmsft.adapters.mlp import Linear
from mmsft.adapters.query_transformer import WHAT, BlipQueries, QueryTransformer
from mmsft.adapters.settings import above_zero
from mmsft.adapters.spec import Adapter, Layout, Slots
from mmsft.modalities.pretrained import fill, read_tensors
from mmsft.modalities.spec import Features
from mmsft.types import Context, Grid

_FEWEST: Final = 3
"""Tokens of an instruction: those at its ends, and one."""
_POSITIONS: Final = 512
"""That a BERT has."""


@dataclass(frozen=True)
class QFormer(BlipQueries, Adapter):
    """A Q-Former that looks at each frame by itself, and a linear layer.

    Attributes:
        instruction: its queries also see what is asked, of which they read the last so many tokens at the most
            (InstructBLIP: 128); None = they see the features alone (BLIP-2).
        tokenizer: of what is asked: a hub id, a folder, or ``asset:NAME``; None = that which lies beside the `weights`.
        projection: the linear layer, too, begins as that of `weights`, which was made for their language model.
        rms: as of `linear`.
    """

    instruction: int | None = None
    tokenizer: str | None = None
    projection: bool = False
    rms: float | None = None

    def _problems(self) -> Iterator[str]:
        yield from super()._problems()
        yield from above_zero(rms=self.rms)
        if self.instruction is not None and not _FEWEST <= self.instruction <= _POSITIONS:
            yield f"instruction: from {_FEWEST} to {_POSITIONS} tokens, got {self.instruction}"
        if self.instruction is not None and self.tokenizer is None and self.weights is None:
            yield "tokenizer: without `weights`, an `instruction` needs one; name that of a BERT"
        if self.instruction is None and self.tokenizer is not None:
            yield "tokenizer: it is for an `instruction`; set that, or leave it out"
        if self.projection and (self.weights is None or self.rms is not None):
            yield "projection: it is loaded from `weights`, and without `rms`; name them, or leave it out"

    @property
    def reads_context(self) -> bool:
        """Whether its queries see what is asked."""
        return self.instruction is not None

    def context(self, text: str) -> tuple[int, ...]:
        """Returns what the queries see of a text.

        Raises:
            ConfigError: the tokenizer can't be loaded.
        """
        assert self.instruction is not None
        return ids_of(text, self._tokenizer(), self.instruction)

    def layout(self, grid: Grid) -> Layout:
        """Returns a slot for each query, a frame's behind those of the frame before it."""
        return (Slots(grid.t * self.queries),)

    def build(self, d_in: int, d_out: int) -> nn.Module:
        """Builds the `QFormerProjector`."""
        vocabulary = len(self._tokenizer()) if self.reads_context else None
        return QFormerProjector(self, d_in, d_out, vocabulary)

    def _tokenizer(self) -> Any:
        if self.tokenizer is not None:
            return load_tokenizer(self.tokenizer)
        assert self.weights is not None
        return load_tokenizer(self.weights, BESIDE)


class QFormerProjector(nn.Module):
    """A `QueryTransformer` for each frame, and a projection to the decoder's width."""

    def __init__(self, spec: QFormer, d_in: int, d_out: int, vocabulary: int | None) -> None:
        super().__init__()
        self.frame = QueryTransformer(spec, d_in, vocabulary)
        self.projection = Linear(rms=spec.rms).build(spec.width, d_out)
        if spec.projection and spec.weights is not None:
            tensors = read_tensors(WHAT, spec.weights, "language_projection.")
            fill(self.projection.get_submodule("layers"), tensors, WHAT, spec.weights)

    def forward(self, features: Features, grid: Grid, context: Context | None = None) -> Tensor:
        """Features with values [N, L, d_in], and what is asked about each → tokens [N, S, d_out]."""
        queries = by_frame(self.frame, features.values, grid, context)
        tokens: Tensor = self.projection(Features(queries), Grid(1, 1, queries.shape[1]))
        return tokens


def by_frame(frame: QueryTransformer, x_NLD: Tensor, grid: Grid, context: Context | None = None) -> Tensor:
    """Looks at each frame by itself: features [N, L, D] → queries [N, t · Q, width], a frame's behind one another."""
    frames: Tensor = x_NLD.unflatten(1, (grid.t, -1)).flatten(0, 1)
    if context is not None:
        ids, mask, of = (it.repeat_interleave(grid.t, 0) for it in (context.ids, context.mask, context.of))
        context = Context(ids, mask, of)
    queries: Tensor = frame(frames, context).unflatten(0, (-1, grid.t))
    return queries.flatten(1, 2)
