"""A tower: an encoder of one modality and the adapter that turns its features into tokens."""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Final, cast

import torch
from torch import Tensor, nn

from mmsft.adapters.spec import Adapter
from mmsft.errors import DataError
from mmsft.features import Keeper
from mmsft.modalities.spec import Encoder, Features, Modality
from mmsft.types import Context, Grid, MediaGroup, Stored

_ROUNDED_BY_AUTOCAST: Final = (nn.Linear, nn.modules.conv._ConvNd, nn.MultiheadAttention)
_WIDEST: Final = 64
"""Features a side of a blank medium at the most."""


class Tower(nn.Module):
    """An encoder and its adapter.

    A frozen encoder runs in eval mode and without gradient, whatever mode the model is in; what is frozen of an
    adapter, in eval mode. BatchNorm stays in eval mode in a learning encoder too: a few pictures would spoil its
    statistics, and a step's loss would depend on how it is split.

    Attributes:
        keeper: takes the features that are encoded for a store; None = there is none.
    """

    def __init__(self, modality: Modality, adapter: Adapter, width: int, dtype: torch.dtype = torch.float32) -> None:
        """Loads the encoder and builds a fresh adapter.

        Args:
            modality: gives the encoder.
            adapter: gives the adapter's module.
            width: of the decoder's embeddings.
            dtype: of the encoder's matrices and filters, in which it then computes; float32 leaves that to autocast.
        """
        super().__init__()
        self.modality = modality
        self.encoder = modality.encoder()
        self._held = dtype
        if dtype != torch.float32:
            _hold(self.encoder, dtype)
        self.adapter_spec = adapter
        self.keeper: Keeper | None = None
        self.adapter = adapter.build(cast(Encoder, self.encoder).width, width)

    @property
    def learns(self) -> bool:
        """Whether any parameter of the tower asks for gradients."""
        return any(parameter.requires_grad for parameter in self.parameters())

    def forward(self, group: MediaGroup) -> Tensor:
        """Makes tokens of N distinct media of one grid, each encoded once, unless a store has its features.

        Returns:
            [N, S, width], or [Q, S, width] where the adapter reads the Q questions about them.
        """
        features = self._encoded(group.tensors) if group.stored is None else self._completed(group.stored)
        if group.grid.of is not None:
            features = features.averaged(group.grid.of, group.grid)
        if group.context is not None:
            features = features._replace(values=features.values.index_select(0, group.context.of))
        return self._adapted(features, group.grid, group.context)

    def _adapted(self, features: Features, grid: Grid, context: Context | None) -> Tensor:
        self.adapter.train(self.training)
        for part in (self.adapter, *self.adapter.children()):
            learns = [parameter.requires_grad for parameter in part.parameters()]
            if learns and not any(learns):
                part.eval()
        asked = () if context is None else (context,)
        if not grid.parts:
            tokens: Tensor = self.adapter(features, grid, *asked)
            return tokens
        values = features.values.split([part.count for part in grid.parts], dim=1)
        each = [self.adapter(Features(some), part, *asked) for some, part in zip(values, grid.parts, strict=True)]
        return torch.cat(each, dim=1)

    def _completed(self, stored: Stored) -> Features:
        fresh = [self._encoded(tensors).values for tensors in stored.fresh]
        if self.keeper is not None:
            self.keeper.put(stored.digests, [values[0] for values in fresh], read=len(stored.order) - len(fresh))
        known = [] if stored.values is None else [stored.values]
        return Features(torch.cat([*known, *fresh]).index_select(0, stored.order))

    def untouched(self) -> Tensor:
        """Returns 0 with a gradient of 0 for all that learns, by way of a blank medium.

        Ranks whose batches hold no medium of this modality must take part in the others' reductions.

        Raises:
            DataError: the adapter doesn't take such a medium.
        """
        like = next(self.parameters())
        grid = _taken(self.adapter_spec, (Grid(1, side, side) for side in range(1, _WIDEST + 1)))
        blank = self.modality.collate([self.modality.blank(grid)])
        tensors = {name: tensor.to(like.device) for name, tensor in blank.items()}
        features = self._encoded(tensors)
        count = features.values.shape[1]
        if count != grid.count:
            # What the adapter makes of it is multiplied by 0, so that any grid of as many features does.
            rows = (side for side in range(1, count + 1) if count % side == 0)
            grid = _taken(self.adapter_spec, (Grid(1, side, count // side) for side in rows))
        context = None
        if self.adapter_spec.reads_context:
            one = torch.zeros(1, 1, dtype=torch.int64, device=like.device)
            context = Context(ids=one, mask=one == 0, of=one[0])
        return self._adapted(features, grid, context).float().sum() * 0

    def _encoded(self, tensors: Mapping[str, Tensor]) -> Features:
        learns = any(parameter.requires_grad for parameter in self.encoder.parameters())
        self.encoder.train(self.training and learns)
        for module in self.encoder.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        device = next(iter(tensors.values())).device.type
        with ExitStack() as how:
            how.enter_context(torch.set_grad_enabled(learns and torch.is_grad_enabled()))
            if self._held != torch.float32:
                how.enter_context(torch.autocast(device, self._held))
            features = cast(Features, self.encoder(tensors))
        if self._held == torch.float32 or torch.is_autocast_enabled(device):
            return features
        return features._replace(values=features.values.float())


def _taken(adapter: Adapter, grids: Iterable[Grid]) -> Grid:
    """Returns the first of some grids that an adapter takes.

    Raises:
        DataError: it takes none; why not the first.
    """
    refused: list[DataError] = []
    for grid in grids:
        try:
            adapter.layout(grid)
        except DataError as error:
            refused.append(error)
        else:
            return grid
    raise refused[0]


def _hold(encoder: nn.Module, dtype: torch.dtype) -> None:
    """Rounds what autocast would round at each use, and nothing else: the features are the same, bit for bit."""
    for module in encoder.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, _ROUNDED_BY_AUTOCAST) and name in ("weight", "in_proj_weight"):
                parameter.data = parameter.data.to(dtype)
