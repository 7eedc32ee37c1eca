"""Attention in packs of trees: a token sees its ancestors and, causally, its own segment; nothing is padded.

On the CPU a block of neighbours meets the path that leads to it and itself; there is never a mask of the whole pack.
On CUDA FlexAttention skips what no query of a block can see; that back end was not run on a GPU, only compared on the
CPU.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import AttentionInterface

from mmsft.errors import MmsftError
from mmsft.types import Pack, Segment

NAME: Final = "mmsft"
"""Under which transformers' models find this back end."""

BLOCK: Final = 64
"""Tokens that share a call, and so a mask, on the CPU: more would compute what is masked, fewer would cost calls."""

_KNOWN: Final = frozenset({"scaling", "dropout", "sliding_window", "softcap"})
_HARMLESS: Final = frozenset(
    {"position_ids", "use_cache", "cache_position", "is_causal", "output_attentions", "output_hidden_states"}
    | {"position_embeddings", "past_key_values", "return_dict", "output_router_logits", "logits_to_keep"}
)


class Unsupported(MmsftError):
    """A family asks of attention what this back end can't do."""


Visible = Callable[[Tensor, Tensor], Tensor]
"""Indices of queries and of keys, which broadcast → whether the query sees the key."""


def visible(until: Tensor, positions: Tensor, window: int | None = None) -> Visible:
    """Returns which token sees which.

    Args:
        until: [T] of the pack.
        positions: [T] in each token's thread.
        window: most tokens of its thread that a token sees, itself included; None = all.
    """

    def sees(query: Tensor, key: Tensor) -> Tensor:
        seen = (key <= query) & (query < until[key])
        return seen if window is None else seen & (positions[query] - positions[key] < window)

    return sees


Span = tuple[int, int]
"""The first of some tokens, and one past the last."""


@dataclass(frozen=True, slots=True)
class Block:
    """Tokens `start` to `end` of a pack, whose queries go through attention in one call.

    Attributes:
        start: first token.
        end: one past the last token.
        above: the tokens before it that some of its tokens see.
        plain: each of its tokens sees all of it up to itself, and nothing else.
    """

    start: int
    end: int
    above: tuple[Span, ...]
    plain: bool


def blocks(segments: Sequence[Segment], size: int, window: int | None = None) -> list[Block]:
    """Divides a pack into runs of tokens: segments that are neighbours, or a stretch of a long one.

    What is before a run and seen from inside of it is also seen by its first token, since subtrees have no gaps. So a
    run meets the path to its first token and itself.

    Args:
        segments: in the order of a walk in depth.
        size: most tokens of a run, but for plain ones, which need no mask.
        window: most tokens of its thread that a token sees, itself included; None = all.
    """
    depths: list[int] = []  # tokens above each segment
    runs: list[_Run] = []
    for index, segment in enumerate(segments):
        above = segments[segment.parent]
        depth = depths[segment.parent] + above.end - above.start if segment.parent >= 0 else 0
        depths.append(depth)
        # A run far down a tree would have another tree's tokens meet a path that they don't see.
        if runs and segment.end - runs[-1].start <= size and runs[-1].depth - depth <= size:
            runs[-1].fewest = min(runs[-1].fewest, depth)
            continue
        length = segment.end - segment.start
        whole = not depth and (window is None or length <= window)
        for start in range(segment.start, segment.end, length if whole else size):
            below = depth + start - segment.start
            runs.append(_Run(start, index, below, below))
    ends = [run.start for run in runs[1:]] + [segments[-1].end]
    return [run.block(segments, end, window) for run, end in zip(runs, ends, strict=True)]


@dataclass(slots=True)
class _Run:
    """A block to be: its first token, that one's segment, the tokens above it, and the fewest above a token of it."""

    start: int
    segment: int
    depth: int
    fewest: int

    def block(self, segments: Sequence[Segment], end: int, window: int | None) -> Block:
        # Of what is above, a window leaves out what is too far even for the token that is the least deep.
        left = self.depth if window is None else min(self.depth, window - 1 + self.depth - self.fewest)
        spans: list[Span] = []
        index, before = self.segment, self.start
        while left:
            first = max(segments[index].start, before - left)
            left -= before - first
            if spans and spans[-1][0] == before:
                spans[-1] = (first, spans[-1][1])
            elif first < before:
                spans.append((first, before))
            index = segments[index].parent
            before = segments[index].end
        plain = not spans and end <= segments[self.segment].end and (window is None or end - self.start <= window)
        return Block(self.start, end, tuple(reversed(spans)), plain)


class _Plan(NamedTuple):
    """How a pack goes through attention.

    Attributes:
        queries: lengths of the blocks.
        keys: lengths of the pieces that keys are cut into, so that each block meets some of them whole.
        seen: for each block, the numbers of its pieces: what is above it, then its own.
        masks: for each block, which keys its tokens see; None = all up to themselves.
    """

    queries: list[int]
    keys: list[int]
    seen: list[list[int]]
    masks: list[Tensor | None]


class Trees:
    """A pack as the attention of every layer asks for it; masks are made once and shared by the layers.

    Args:
        pack: the segments.
        positions: [T] of the tokens in their threads, on the pack's device.
        size: of the blocks.
    """

    def __init__(self, pack: Pack, positions: Tensor, size: int = BLOCK) -> None:
        self._until, self._positions = pack.until, positions
        self._device = pack.until.device
        self._segments, self._size = pack.segments, size
        self._plans: dict[int | None, _Plan] = {}
        self._block_masks: dict[int | None, BlockMask] = {}

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
        dropout: float = 0.0,
    ) -> Tensor:
        """Returns what each token takes from those that it sees, [1, H, T, D'].

        Args:
            query: [1, H, T, D].
            key: [1, K, T, D]; K divides H.
            value: [1, K, T, D'].
            scale: of the products.
            window: most tokens of its thread that a token sees, itself included; None = all.
            softcap: bends products to lie within ±softcap.
            dropout: part of the weights that is left out.
        """
        if self._device.type == "cuda" and not dropout:  # which FlexAttention can't do
            return self.flex(query, key, value, scale=scale, window=window, softcap=softcap)
        call = _Call(scale, softcap, dropout)
        plan = self._plan(window)
        if len(plan.masks) == 1:
            return call(query, key, value, plan.masks[0])
        # Split once: the gradient of each slice would be as long as the pack.
        queries, keys, values = query.split(plan.queries, 2), key.split(plan.keys, 2), value.split(plan.keys, 2)
        pieces = [
            call(block, _joined(keys, seen), _joined(values, seen), mask)
            for block, seen, mask in zip(queries, plan.seen, plan.masks, strict=True)
        ]
        return torch.cat(pieces, 2)

    def flex(
        self, query: Tensor, key: Tensor, value: Tensor, *, scale: float, window: int | None, softcap: float | None
    ) -> Tensor:
        """Does what `attend` does by FlexAttention, without dropout; compiled on CUDA."""
        if window not in self._block_masks:
            sees = visible(self._until, self._positions, window)
            length = query.shape[2]
            self._block_masks[window] = _compiled(create_block_mask, self._device.type)(
                lambda batch, head, q, k: sees(q, k), None, None, length, length, device=self._device
            )
        cap = None if softcap is None else lambda score, *_: softcap * torch.tanh(score / softcap)
        run = _compiled(flex_attention, self._device.type)
        out: Tensor = run(
            query, key, value, cap, self._block_masks[window], scale, enable_gqa=query.shape[1] != key.shape[1]
        )
        return out

    def _plan(self, window: int | None) -> _Plan:
        if window not in self._plans:
            found = blocks(self._segments, self._size, window)
            spans = [(*block.above, (block.start, block.end)) for block in found]
            cuts = sorted({cut for some in spans for span in some for cut in span})
            number = {cut: index for index, cut in enumerate(cuts)}
            sees = visible(self._until, self._positions, window)
            self._plans[window] = _Plan(
                queries=[block.end - block.start for block in found],
                keys=[end - start for start, end in pairwise(cuts)],
                seen=[[piece for start, end in some for piece in range(number[start], number[end])] for some in spans],
                masks=[
                    None if block.plain else self._mask(some, sees) for block, some in zip(found, spans, strict=True)
                ],
            )
        return self._plans[window]

    def _mask(self, spans: Sequence[Span], sees: Visible) -> Tensor:
        tokens = [torch.arange(start, end, device=self._device) for start, end in spans]
        return sees(tokens[-1][:, None], torch.cat(tokens)[None, :])


@dataclass(frozen=True, slots=True)
class _Call:
    """Scaled dot-product attention of one block; without a mask it is causal."""

    scale: float
    softcap: float | None
    dropout: float

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        if self.softcap is None:
            return F.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=mask,
                dropout_p=self.dropout,
                is_causal=mask is None,
                scale=self.scale,
                enable_gqa=query.shape[1] != key.shape[1],
            )
        shared = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
        score = self.softcap * torch.tanh(query @ key.transpose(2, 3) * self.scale / self.softcap)
        if mask is None:
            mask = torch.ones(score.shape[2:], dtype=torch.bool, device=score.device).tril()
        weights = score.masked_fill(~mask, -torch.inf).softmax(-1, dtype=torch.float32).to(query.dtype)
        return F.dropout(weights, self.dropout) @ value


def _joined(pieces: Sequence[Tensor], chosen: Sequence[int]) -> Tensor:
    return pieces[chosen[0]] if len(chosen) == 1 else torch.cat([pieces[index] for index in chosen], 2)


@cache
def _compiled(function: Callable[..., Any], device: str) -> Callable[..., Any]:
    # Packs differ in length; uncompiled, FlexAttention would hold all scores.
    return torch.compile(function, dynamic=True) if device == "cuda" else function


def attend_by_trees(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    trees: Trees | None = None,
    **how: Any,
) -> tuple[Tensor, None]:
    """What transformers' layers call; [1, H, T, D] queries → [1, T, H, D'].

    Raises:
        Unsupported: there are no trees, or the family asks for more than they can do.
    """
    if trees is None:
        raise Unsupported(f"{type(module).__name__} was called without trees; take sdpa for padded threads")
    odd = sorted(name for name, value in how.items() if value is not None and name not in _KNOWN | _HARMLESS)
    if odd or attention_mask is not None:
        what = ", ".join(odd) or "a mask"
        raise Unsupported(f"{type(module).__name__} hands attention {what}, which trees can't take")
    scale = how.get("scaling")
    out = trees.attend(
        query,
        key,
        value,
        scale=query.shape[-1] ** -0.5 if scale is None else float(scale),
        window=how.get("sliding_window"),
        softcap=how.get("softcap"),
        dropout=how.get("dropout", 0.0) if module.training else 0.0,
    )
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, attend_by_trees)
