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
    """

    sum: Tensor
    count: Tensor
    by_source: Tensor


def sft(model: nn.Module, batch: Batch, sources: int) -> Loss:
    """Scores a batch.

    Args:
        model: gives the negative log-likelihood [N] of the batch's targets.
        batch: on the model's device.
        sources: number of sources in the recipe.
    """
    weight = batch.targets.weight
    losses = model(batch) * weight
    by_source = torch.zeros(sources, 2, device=losses.device)
    by_source.index_add_(0, batch.targets.source, torch.stack([losses.detach(), weight], 1))
    return Loss(losses.sum(), weight.sum(), by_source)
