import torch
from torch import Tensor, nn

from mmsft.objectives import sft
from mmsft.types import Batch, BatchTargets


class Scores(nn.Module):
    """Gives a parameter as the negative log-likelihoods."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.tensor(values))

    def forward(self, batch: Batch) -> Tensor:
        return self.values


def batch(weight: list[float], source: list[int]) -> Batch:
    zeros = torch.zeros(len(weight), dtype=torch.long)
    targets = BatchTargets(zeros, zeros, torch.tensor(weight), torch.tensor(source, dtype=torch.long))
    return Batch(("a:1",), zeros[None], zeros[None], zeros[None].bool(), targets, {})


def test_weights_multiply_the_loss_and_are_its_count() -> None:
    model = Scores(1.0, 2.0, 3.0)
    loss = sft(model, batch([1, 0.5, 2], [0, 2, 0]), 3)
    assert (loss.sum.item(), loss.count.item()) == (8, 3.5)
    assert loss.by_source.tolist() == [[7, 3], [0, 0], [1, 0.5]]
    loss.sum.backward()
    assert model.values.grad is not None
    assert model.values.grad.tolist() == [1, 0.5, 2]
    assert not loss.by_source.requires_grad


def test_a_batch_without_targets_has_a_gradient_of_nothing() -> None:
    loss = sft(Scores(), batch([], []), 1)
    loss.sum.backward()
    assert (loss.sum.item(), loss.count.item()) == (0, 0)
