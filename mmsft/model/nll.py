"""Negative log-likelihood of targets, in fp32, without ever holding many logits."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

CHUNK = 2**26
"""Logits held at once: 256 MB in fp32."""


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
    with torch.autocast(logits_NV.device.type, enabled=False):
        return F.cross_entropy(logits_NV.float(), token_N, reduction="none")
