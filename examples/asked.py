"""An adapter that reads what is asked: the question's bytes decide how much of each feature goes into the tokens."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmsft import Adapter, Context, Features, Grid, Layout, Slots


@dataclass(frozen=True)
class Asked(Adapter):
    most: int = 64  # a field is a setting in YAML

    @property
    def reads_context(self) -> bool:
        return True

    def context(self, text: str) -> tuple[int, ...]:  # in data workers
        return tuple(text.encode()[-self.most :])

    def layout(self, grid: Grid) -> Layout:
        return (Slots(grid.count),)

    def build(self, d_in: int, d_out: int) -> nn.Module:
        return Gated(d_in, d_out)


class Gated(nn.Module):
    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.letters = nn.Embedding(256, d_in)
        self.out = nn.Linear(d_in, d_out)

    def forward(self, features: Features, grid: Grid, context: Context) -> Tensor:
        said = self.letters(context.ids) * context.mask[:, :, None]  # [N, T, d_in], nothing at padding
        tokens: Tensor = self.out(features.values * torch.sigmoid(said.sum(1, keepdim=True)))
        return tokens
