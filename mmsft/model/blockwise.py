"""Attention of a pack's blocks, each with the keys that it meets; weights are computed anew on the way back.

As in FlashAttention (Dao et al., arXiv 2205.14135) a layer keeps its inputs and its output, none of its weights; here
on any device, for blocks so small that their weights stay in a processor's cache.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Span = tuple[int, int]
"""The first of some tokens, and one past the last."""


class Met(NamedTuple):
    """Queries that meet the same keys.

    Attributes:
        start: the first of n queries.
        end: one past the last.
        keys: m keys that some of them see, in as few spans as can be.
        unseen: [n, m] True where a query doesn't see a key.
    """

    start: int
    end: int
    keys: Sequence[Span]
    unseen: Tensor


class How(NamedTuple):
    """How products become weights.

    Attributes:
        scale: of the products.
        softcap: bends products to lie within ±softcap; None = as they are.
        dropout: part of the weights that is left out.
    """

    scale: float
    softcap: float | None
    dropout: float


def attend_in_blocks(query: Tensor, key: Tensor, value: Tensor, blocks: Sequence[Met], how: How) -> Tensor:
    """Returns what each query takes from the keys that it sees, [1, H, T, D']; zero for a query that is in no block.

    Args:
        query: [1, H, T, D].
        key: [1, K, T, D]; K divides H.
        value: [1, K, T, D'].
        blocks: of queries, none in two of them.
        how: from products to weights.
    """
    out: Tensor = _Blockwise.apply(query, key, value, blocks, how)
    return out


class _Blockwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, blocks: Sequence[Met], how: How) -> Tensor:
        grouped, keys, values = query[0].unflatten(0, (key.shape[1], -1)), key[0], value[0]
        out = _by_token(grouped, value.shape[3])
        if sum(block.end - block.start for block in blocks) < query.shape[2]:
            out.zero_()
        kept: list[Tensor | None] = []
        for block in blocks:
            weights = _Weights.of(_rows(grouped, block) @ _met(keys, block).transpose(1, 2), block.unseen, how)
            kept.append(_kept(weights.values, how.dropout))
            taken = _thinned(weights.values, kept[-1], how.dropout).to(value.dtype) @ _met(values, block)
            _place(out, block, taken)
        ctx.save_for_backward(query, key, value, out, *(some for some in kept if some is not None))
        ctx.blocks, ctx.how = blocks, how
        return out.flatten(0, 1)[None]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, *kept = ctx.saved_tensors
        blocks, how, shape = ctx.blocks, ctx.how, (key.shape[1], -1)
        grouped, keys, values, grads = query[0].unflatten(0, shape), key[0], value[0], grad[0].unflatten(0, shape)
        # A key's gradient is a sum over the blocks that meet it: of many small numbers where many rows share a prefix.
        wide = torch.promote_types(key.dtype, torch.float32)
        of_query = _by_token(grouped, query.shape[3])
        of_key, of_value = torch.zeros_like(keys, dtype=wide), torch.zeros_like(values, dtype=wide)
        if sum(block.end - block.start for block in blocks) < query.shape[2]:
            of_query.zero_()
        for block, keep in zip(blocks, kept or [None] * len(blocks), strict=True):
            rows, met, back = _rows(grouped, block), _met(keys, block), _rows(grads, block)
            weights = _Weights.of(rows @ met.transpose(1, 2), block.unseen, how)
            thinned = _thinned(weights.values, keep, how.dropout).to(value.dtype)
            _add(of_value, block, thinned.transpose(1, 2) @ back)
            of_weights = _thinned((back @ _met(values, block).transpose(1, 2)).to(wide), keep, how.dropout)
            delta = (back.to(wide) * _rows(out, block)).sum(-1, keepdim=True)
            of_products = weights.back(of_weights, delta, how).to(query.dtype)
            _place(of_query, block, of_products @ met)
            _add(of_key, block, of_products.transpose(1, 2) @ rows)
        return of_query.flatten(0, 1)[None], of_key.to(key.dtype)[None], of_value.to(value.dtype)[None], None, None


class _Weights(NamedTuple):
    """Weights of a block, in fp32 at least.

    Attributes:
        values: [K, H/K·n, m].
        bend: the slope of the products' cap; None = there is none.
    """

    values: Tensor
    bend: Tensor | None

    @classmethod
    def of(cls, products: Tensor, unseen: Tensor, how: How) -> "_Weights":
        """Returns the weights that products [K, H/K·n, m] become."""
        score = products.to(torch.promote_types(products.dtype, torch.float32))
        score *= how.scale
        bend = None
        if how.softcap is not None:
            bent = torch.tanh(score / how.softcap)
            score, bend = how.softcap * bent, 1 - bent * bent
        score.unflatten(1, (-1, len(unseen))).masked_fill_(unseen, -torch.inf)
        return cls(score.softmax(-1), bend)

    def back(self, of_weights: Tensor, delta: Tensor, how: How) -> Tensor:
        """Returns the products' gradient from that of the weights, of which `delta` is the mean by the weights."""
        of_weights -= delta
        of_weights *= self.values
        of_weights *= how.scale
        return of_weights if self.bend is None else of_weights.mul_(self.bend)


def _by_token(grouped: Tensor, width: int) -> Tensor:
    """Returns an empty [K, H/K, T, width] in which a token's heads lie side by side, as the next layer reads them."""
    heads, shared, tokens, _ = grouped.shape
    return grouped.new_empty(tokens, heads, shared, width).permute(1, 2, 0, 3)


def _rows(grouped: Tensor, block: Met) -> Tensor:
    """Returns a block of [K, H/K, T, D] as [K, H/K·n, D]: heads that share keys stand behind one another."""
    return grouped[:, :, block.start : block.end].flatten(1, 2)


def _place(grouped: Tensor, block: Met, rows: Tensor) -> None:
    """Writes what `_rows` would return."""
    grouped[:, :, block.start : block.end] = rows.unflatten(1, (-1, block.end - block.start))


def _met(states: Tensor, block: Met) -> Tensor:
    """Returns what a block meets of [K, T, D], [K, m, D]."""
    spans = [states[:, start:end] for start, end in block.keys]
    return spans[0] if len(spans) == 1 else torch.cat(spans, 1)


def _add(states: Tensor, block: Met, met: Tensor) -> None:
    """Adds to what `_met` would return."""
    pieces = met.split([end - start for start, end in block.keys], 1)
    for (start, end), piece in zip(block.keys, pieces, strict=True):
        states[:, start:end] += piece


def _kept(weights: Tensor, dropout: float) -> Tensor | None:
    """Draws which weights are kept; None = all."""
    return torch.rand_like(weights) >= dropout if dropout else None


def _thinned(weights: Tensor, kept: Tensor | None, dropout: float) -> Tensor:
    return weights if kept is None else weights * kept / (1 - dropout)
