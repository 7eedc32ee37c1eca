"""Loss on held-out rows."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmsft.data.loader import refuse_other_rows
from mmsft.objectives import sft
from mmsft.objectives.by_group import Sums, add_up
from mmsft.parallel import Ranks
from mmsft.types import Batch, Group


class HeldOutLoss(NamedTuple):
    """Σ weight · nll ÷ Σ weight over all processes' batches, NaN where there is none; and sum and count by group."""

    loss: float
    by_group: Sums


def held_out_loss(
    model: nn.Module, batches: Iterable[Batch], ranks: Ranks, sources: int, division: int = 0
) -> HeldOutLoss:
    """Scores batches; the model is left in evaluation mode.

    Args:
        model: gives nll for a batch.
        batches: this process's.
        ranks: the processes.
        sources: number of sources of the recipe.
        division: checksum of how the rows are divided among the processes.

    Raises:
        DataError: they have divided them otherwise.
    """
    model.eval()
    sums = torch.zeros(2, device=ranks.device, dtype=ranks.wide)
    groups: list[Group] = []
    by_group: list[Tensor] = []
    # Not inference_mode: a decoder may keep a tensor made here (a longer rotary table), and train with it later.
    with torch.no_grad(), ranks.autocast():
        for batch in batches:
            moved = batch.map(lambda tensor: tensor.to(ranks.device, non_blocking=True))
            loss = sft(model, moved, sources)
            sums += torch.stack([loss.sum, loss.count]).to(sums.dtype)
            if loss.by_group is not None:
                groups += batch.groups
                by_group.append(loss.by_group.to(sums.dtype))
    odds = sums.new_tensor([ranks.odds(division)])
    total, count, differ = ranks.total(torch.cat([sums, odds])).tolist()
    refuse_other_rows(differ, "the held-out rows")
    values = torch.cat([sums.new_zeros(0, 2), *by_group]).tolist()
    own = add_up({group: (first, second)} for group, (first, second) in zip(groups, values, strict=True))
    return HeldOutLoss(total / count if count else float("nan"), add_up(ranks.gather(own)))
