"""Supervised fine-tuning: Σ weight · −log p(target), and Σ weight."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmsft.types import Batch


@dataclass(frozen=True, slots=True)
class Loss:
    """What a batch adds to a global step; the step's loss is Σ sums ÷ Σ counts over all its batches.

    Attributes:
        sum: scalar, with gradient.
        count: scalar.
        by_source: [sources, 2] the same sums and counts for each source, without gradient.
        by_group: [groups, 2] likewise for each of the batch's groups; None = it has none.
    """

    sum: Tensor
    count: Tensor
    by_source: Tensor
    by_group: Tensor | None = None


def sft(model: nn.Module, batch: Batch, sources: int) -> Loss:
    """Scores a batch.

    Args:
        model: gives the negative log-likelihood [N] of the batch's targets.
        batch: on the model's device.
        sources: number of sources in the recipe.
    """
    targets, weight = batch.targets, batch.targets.weight
    losses = model(batch) * weight
    each = torch.stack([losses.detach(), weight], 1)
    by_source = torch.zeros(sources, 2, device=losses.device).index_add_(0, targets.source, each)
    by_group = None
    if targets.group is not None:
        by_group = torch.zeros(len(batch.groups), 2, device=losses.device).index_add_(0, targets.group, each)
    return Loss(losses.sum(), weight.sum(), by_source, by_group)
