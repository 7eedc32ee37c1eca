"""Negative log-likelihood of targets, in fp32, without ever holding many logits."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

CHUNK = 2**26
"""Logits held at once: 256 MB in fp32."""


def nll(hidden_ND: Tensor, token_N: Tensor, head: nn.Module | None = None, chunk: int = CHUNK) -> Tensor:
    """Scores targets.

    Args:
        hidden_ND: what predicts each target: hidden states, or logits where there is no head.
        token_N: ids to predict.
        head: hidden states → logits.
        chunk: most logits at once; with more, the backward pass computes them a second time.

    Returns:
        −log p of each target, [N] fp32.
    """
    if head is None:
        return _score(hidden_ND, token_N)
    rows = max(1, chunk // _vocabulary(head))
    if len(token_N) <= rows:
        return _score(head(hidden_ND), token_N)
    pieces = zip(hidden_ND.split(rows), token_N.split(rows), strict=True)
    return torch.cat([checkpoint(lambda h, t: _score(head(h), t), h, t, use_reentrant=False) for h, t in pieces])


def _score(logits_NV: Tensor, token_N: Tensor) -> Tensor:
    with torch.autocast(logits_NV.device.type, enabled=False):
        return F.cross_entropy(logits_NV.float(), token_N, reduction="none")


def _vocabulary(head: nn.Module) -> int:
    size = head.out_features
    assert isinstance(size, int)
    return size
