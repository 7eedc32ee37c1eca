"""Loss on held-out rows."""

from collections.abc import Iterable

import torch
from torch import nn

from mmsft.objectives import sft
from mmsft.parallel import Ranks
from mmsft.types import Batch


def held_out_loss(model: nn.Module, batches: Iterable[Batch], ranks: Ranks, sources: int) -> float:
    """Returns Σ weight · nll ÷ Σ weight over all processes' batches; the model is left in evaluation mode."""
    model.eval()
    sums = torch.zeros(2, device=ranks.device, dtype=torch.float64)
    # Not inference_mode: a decoder may keep a tensor made here (a longer rotary table), and train with it later.
    with torch.no_grad(), ranks.autocast():
        for batch in batches:
            moved = batch.map(lambda tensor: tensor.to(ranks.device, non_blocking=True))
            loss = sft(model, moved, sources)
            sums += torch.stack([loss.sum, loss.count]).double()
    total, count = ranks.total(sums).tolist()
    return total / count if count else float("nan")
