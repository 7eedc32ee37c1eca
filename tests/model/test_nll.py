"""Scores of targets beside torch's own."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmsft.model import nll as module
from mmsft.model.nll import nll


def drawn(rows: int, dtype: torch.dtype, vocabulary: int = 300) -> tuple[Tensor, Tensor, Tensor]:
    """Returns logits, tokens and weights."""
    generator = torch.Generator().manual_seed(rows)
    logits = 5 * torch.randn(rows, vocabulary, generator=generator)
    token = torch.randint(vocabulary, (rows,), generator=generator)
    return logits.to(dtype).requires_grad_(), token, torch.rand(rows, generator=generator)


def score(logits: Tensor, token: Tensor, chunk: int = module.CHUNK) -> Tensor:
    """Scores logits as if a head had made them of themselves."""
    return nll(logits, token, lambda hidden: hidden, logits.shape[1], chunk)


@pytest.mark.parametrize("in_cache", [1, 1000, 2**19])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 5e-3)])
def test_scores_and_gradients_are_those_of_cross_entropy(
    dtype: torch.dtype, bound: float, in_cache: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_IN_CACHE", in_cache)
    logits, token, weight = drawn(37, dtype)
    mine, theirs = score(logits, token), F.cross_entropy(logits.float(), token, reduction="none")
    assert mine.dtype == torch.float32
    torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-5)
    ours, expected = (torch.autograd.grad((some * weight).sum(), logits)[0] for some in (mine, theirs))
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, expected, rtol=bound, atol=1e-7)


def test_gradients_are_those_of_finite_differences() -> None:
    logits, token, _ = drawn(4, torch.float64, 6)
    assert torch.autograd.gradcheck(lambda states: score(states, token), [logits.detach().requires_grad_()])


def test_no_targets_have_no_scores() -> None:
    logits, token, _ = drawn(0, torch.float32)
    assert score(logits, token).shape == (0,)
    score(logits, token).sum().backward()


def test_large_logits_overflow_nowhere() -> None:
    logits = torch.tensor([[3e4, -3e4, 0.0]], requires_grad=True)
    scores = score(logits, torch.tensor([1]))
    scores.sum().backward()
    assert scores.item() == pytest.approx(6e4)
    torch.testing.assert_close(logits.grad, torch.tensor([[1.0, -1.0, 0.0]]))


def test_what_is_kept_of_16_bit_logits_is_not_wider() -> None:
    logits, token, _ = drawn(50, torch.bfloat16)
    kept = 0

    def keep(state: Tensor) -> Tensor:
        nonlocal kept
        kept += state.numel() * state.element_size() if state.is_floating_point() else 0
        return state

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda state: state):
        score(logits, token)
    assert kept == 2 * logits.numel() + 4 * 50  # and a sum for each row
