"""Negative log-likelihood of targets, in fp32, without ever holding many logits."""

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

CHUNK: Final = 2**26
"""Logits held at once: 256 MB in fp32, 128 MB in 16 bits."""

_IN_CACHE: Final = 2**19
"""Logits that are widened at once on the CPU, so many that they stay in its caches; elsewhere all of a chunk are."""


def nll(
    hidden_ND: Tensor, token_N: Tensor, logits: Callable[[Tensor], Tensor], vocabulary: int, chunk: int = CHUNK
) -> Tensor:
    """Scores targets.

    Args:
        hidden_ND: the hidden states that predict the targets.
        token_N: ids to predict.
        logits: hidden states [n, D] → logits [n, V].
        vocabulary: V.
        chunk: most logits at once; with more, the backward pass computes them a second time.

    Returns:
        −log p of each target, [N] fp32.
    """
    rows = max(1, chunk // vocabulary)
    if len(token_N) <= rows:
        return _score(logits(hidden_ND), token_N)
    pieces = zip(hidden_ND.split(rows), token_N.split(rows), strict=True)
    return torch.cat([checkpoint(lambda h, t: _score(logits(h), t), h, t, use_reentrant=False) for h, t in pieces])


def _score(logits_NV: Tensor, token_N: Tensor) -> Tensor:
    piece = _IN_CACHE if logits_NV.device.type == "cpu" else logits_NV.numel()
    scored: Tensor = _Score.apply(logits_NV, token_N, max(1, piece // logits_NV.shape[1]))
    return scored


class _Score(torch.autograd.Function):
    """Cross-entropy that keeps the logits as the head gives them, in 16 bits say, and widens a piece at a time."""

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, token_N: Tensor, rows: int) -> Tensor:
        wide = torch.promote_types(logits_NV.dtype, torch.float32)
        total_N = torch.cat([logits.to(wide).logsumexp(1) for logits in logits_NV.split(rows)])
        ctx.save_for_backward(logits_NV, token_N, total_N)
        ctx.rows = rows
        return total_N - logits_NV.gather(1, token_N[:, None])[:, 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor, None, None]:
        logits_NV, token_N, total_N = ctx.saved_tensors
        grad_NV = torch.empty_like(logits_NV)
        pieces = (tensor.split(ctx.rows) for tensor in (grad_NV, logits_NV, token_N, total_N, grad_N))
        for out, logits, token, total, grad in zip(*pieces, strict=True):
            pull = torch.sub(logits.to(total.dtype), total[:, None]).exp_().mul_(grad[:, None])
            out.copy_(pull.scatter_add_(1, token[:, None], -grad[:, None]))
        return grad_NV, None, None
