"""Attention in packs of trees: a token sees its ancestors and, causally, its own segment; nothing is padded.

On the CPU each block of a tree meets the keys that it can see, and no others; there is never a mask of the whole pack.
On CUDA FlexAttention skips what no query of a block can see; that back end was not run on a GPU, only compared on the
CPU.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import AttentionInterface

from mmsft.errors import MmsftError
from mmsft.types import Pack, Segment, subtree_ends

NAME: Final = "mmsft"
"""Under which transformers' models find this back end."""

_BLOCK: Final = 128
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


@dataclass(frozen=True, slots=True)
class Block:
    """Tokens `start` to `end` of a pack, whose queries go through attention in one call.

    Attributes:
        start: first token.
        end: one past the last token.
        ancestors: numbers of the blocks before it that all of its tokens see.
        plain: it is a stretch of one thread that sees itself causally and nothing else.
    """

    start: int
    end: int
    ancestors: tuple[int, ...]
    plain: bool


def blocks(segments: Sequence[Segment], size: int = _BLOCK) -> list[Block]:
    """Divides a pack: small subtrees that answer one parent go together, long segments by themselves.

    Args:
        segments: in the order of a walk in depth.
        size: most tokens of several subtrees together, and of a stretch of a segment that has ancestors.
    """
    children: list[list[int]] = [[] for _ in segments]
    roots: list[int] = []
    for index, segment in enumerate(segments):
        (children[segment.parent] if segment.parent >= 0 else roots).append(index)
    ends = subtree_ends(segments)
    made: list[Block] = []
    # Each entry: a run of siblings in order, and the blocks of their ancestors.
    pending: list[tuple[list[int], tuple[int, ...]]] = [(roots, ())]
    while pending:
        siblings, above = pending.pop()
        first, last = siblings[0], _together(siblings, segments, ends, size)
        if last < len(siblings):
            pending.append((siblings[last:], above))
        if last > 1 or (children[first] and ends[first] - segments[first].start <= size):
            made.append(Block(segments[first].start, ends[siblings[last - 1]], above, plain=False))
            continue
        segment = segments[first]
        stretch = size if above else segment.end - segment.start
        borders = [*range(segment.start, segment.end, stretch), segment.end]
        for start, end in pairwise(borders):
            made.append(Block(start, end, above, plain=not above))
            above = (*above, len(made) - 1)
        if children[first]:
            pending.append((children[first], above))
    return made


def _together(siblings: Sequence[int], segments: Sequence[Segment], ends: Sequence[int], size: int) -> int:
    """Returns how many of the first siblings go into one block with all below them; 1 also if the first is too long."""
    start, last = segments[siblings[0]].start, 1
    while last < len(siblings) and ends[siblings[last]] - start <= size:
        last += 1
    return last


class Trees:
    """A pack as the attention of every layer asks for it; masks are made once and shared by the layers.

    Args:
        pack: the segments.
        positions: [T] of the tokens in their threads, on the pack's device.
    """

    def __init__(self, pack: Pack, positions: Tensor) -> None:
        self._until, self._positions = pack.until, positions
        self._device = pack.until.device
        self._segments = pack.segments
        self._masks: dict[int | None, list[Tensor | None]] = {}
        self._block_masks: dict[int | None, BlockMask] = {}

    @cached_property
    def _blocks(self) -> list[Block]:
        return blocks(self._segments)

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
        masks = self._masks_of(window)
        if len(masks) == 1:
            return call(query, key, value, masks[0])
        sizes = [block.end - block.start for block in self._blocks]
        # Split once: the gradients of slices would each be as long as the pack.
        queries, keys, values = query.split(sizes, 2), key.split(sizes, 2), value.split(sizes, 2)
        pieces = []
        for number, (block, mask) in enumerate(zip(self._blocks, masks, strict=True)):
            seen = (*block.ancestors, number)
            pieces.append(
                call(queries[number], _joined([keys[i] for i in seen]), _joined([values[i] for i in seen]), mask)
            )
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

    def _masks_of(self, window: int | None) -> list[Tensor | None]:
        """Returns which keys, its ancestors' and its own, each block's tokens see; None = all up to themselves."""
        if window not in self._masks:
            sees = visible(self._until, self._positions, window)
            self._masks[window] = [self._mask(block, sees, window) for block in self._blocks]
        return self._masks[window]

    def _mask(self, block: Block, sees: Visible, window: int | None) -> Tensor | None:
        if block.plain and (window is None or block.end - block.start <= window):
            return None
        own = torch.arange(block.start, block.end, device=self._device)
        above = [self._blocks[i] for i in block.ancestors]
        keys = torch.cat([*(torch.arange(b.start, b.end, device=self._device) for b in above), own])
        return sees(own[:, None], keys[None, :])


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


def _joined(pieces: Sequence[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(list(pieces), 2)


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
