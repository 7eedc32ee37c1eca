"""Attention in packs of trees: a token sees its ancestors and, causally, its own segment; nothing is padded.

On the CPU a block of neighbours meets the path that leads to it and itself; there is never a mask of the whole pack.
On CUDA FlexAttention skips what no query of a block can see; that back end was not run on a GPU, only compared on the
CPU.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain, pairwise
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import AttentionInterface

from mmsft.errors import MmsftError
from mmsft.model.blockwise import How, Met, Span, attend_in_blocks
from mmsft.types import Pack, Segment

log = logging.getLogger(__name__)

NAME: Final = "mmsft"
"""Under which transformers' models find this back end."""

BLOCK: Final = 64
"""Tokens that share a call, and so a mask, on the CPU: more would compute what is masked, fewer would cost calls."""

LONG: Final = 1024
"""Tokens of a segment by itself from which on SDPA is faster than blocks; below that it takes up to twice as long."""

_TILE: Final = 128
"""FlexAttention's own block; lengths are multiples of it, so that packs of many lengths need few compilations."""

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
        above: the tokens before it that some of its tokens see.
        long: each of its tokens sees all of it up to itself, and nothing else.
    """

    start: int
    end: int
    above: tuple[Span, ...]
    long: bool


def blocks(segments: Sequence[Segment], size: int, window: int | None = None, long: int | None = LONG) -> list[Block]:
    """Divides a pack into runs of tokens: segments that are neighbours, or a stretch of a long one.

    What is before a run and seen from inside of it is also seen by its first token, since subtrees have no gaps. So a
    run meets the path to its first token and itself.

    Args:
        segments: in the order of a walk in depth.
        size: most tokens of a run, but for long ones.
        window: most tokens of its thread that a token sees, itself included; None = all.
        long: a segment of more tokens that continues none is a run by itself; None = it is cut too.
    """
    depths: list[int] = []  # tokens above each segment
    runs: list[_Run] = []
    for index, segment in enumerate(segments):
        above = segments[segment.parent]
        depth = depths[segment.parent] + above.end - above.start if segment.parent >= 0 else 0
        depths.append(depth)
        # A run far down a tree would have another tree's tokens meet a path that they don't see.
        near = runs and segment.end - runs[-1].start <= size and runs[-1].depth - depth <= size
        if near and not runs[-1].long:
            runs[-1].fewest = min(runs[-1].fewest, depth)
            continue
        length = segment.end - segment.start
        alone = long is not None and not depth and length > long and (window is None or length <= window)
        for start in range(segment.start, segment.end, length if alone else size):
            below = depth + start - segment.start
            runs.append(_Run(start, index, below, below, alone))
    ends = [run.start for run in runs[1:]] + [segments[-1].end]
    return [run.block(segments, end, window) for run, end in zip(runs, ends, strict=True)]


@dataclass(slots=True)
class _Run:
    """A block to be.

    Attributes:
        start: its first token.
        segment: that one's.
        depth: tokens above that one.
        fewest: above a token of it.
        long: as of the block.
    """

    start: int
    segment: int
    depth: int
    fewest: int
    long: bool

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
        return Block(self.start, end, tuple(reversed(spans)), self.long)


class _Plan(NamedTuple):
    """How a pack goes through attention.

    Attributes:
        blocks: with the keys that they meet.
        long: stretches whose tokens see all of them up to themselves, and nothing else.
    """

    blocks: list[Met]
    long: list[Span]

    def lengths(self, tokens: int) -> list[int]:
        """Returns those of the stretches, and of what is before, between and behind them, of so many tokens."""
        cuts = [0, *chain.from_iterable(self.long), tokens]
        return [end - start for start, end in pairwise(cuts)]


class Trees:
    """A pack as the attention of every layer asks for it; masks are made once and shared by the layers.

    Args:
        pack: the segments.
        positions: [T] of the tokens in their threads, on the pack's device.
        size: of the blocks.
        long: see `blocks`.
    """

    def __init__(self, pack: Pack, positions: Tensor, size: int = BLOCK, long: int = LONG) -> None:
        self.pack, self._positions, self._size, self._long = pack, positions, size, long
        self._device = pack.until.device
        self._plans: dict[tuple[int | None, bool], _Plan] = {}
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
        if self._device.type == "cuda":
            if not dropout:
                return self.flex(query, key, value, scale=scale, window=window, softcap=softcap)
            _tell_of_dropout()
        return self.in_blocks(query, key, value, scale=scale, window=window, softcap=softcap, dropout=dropout)

    def in_blocks(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scale: float,
        window: int | None,
        softcap: float | None,
        dropout: float = 0.0,
    ) -> Tensor:
        """Does what `attend` does block by block, on any device."""
        plan, how = self._plan(window, capped=softcap is not None), How(scale, softcap, dropout)
        if not plan.long:
            return attend_in_blocks(query, key, value, plan.blocks, how)
        # Split once: the gradient of each slice would be as long as the pack.
        lengths = plan.lengths(query.shape[2])
        queries, keys, values = query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2)
        pieces = list(attend_in_blocks(query, key, value, plan.blocks, how).split(lengths, 2))
        for number in range(1, len(pieces), 2):
            pieces[number] = F.scaled_dot_product_attention(
                queries[number],
                keys[number],
                values[number],
                dropout_p=dropout,
                is_causal=True,
                scale=scale,
                enable_gqa=query.shape[1] > key.shape[1],
            )
        return torch.cat(pieces, 2)

    def flex(
        self, query: Tensor, key: Tensor, value: Tensor, *, scale: float, window: int | None, softcap: float | None
    ) -> Tensor:
        """Does what `attend` does by FlexAttention, without dropout; compiled on CUDA."""
        tokens = query.shape[2]
        more = max(2 * _TILE, -(-tokens // _TILE) * _TILE) - tokens
        if window not in self._block_masks:
            # What a pack is lengthened by sees itself alone.
            until = torch.cat([self.pack.until, torch.arange(tokens + 1, tokens + more + 1, device=self._device)])
            sees = visible(until, F.pad(self._positions, (0, more)), tokens if window is None else window)
            self._block_masks[window] = _compiled(create_block_mask, self._device.type)(
                lambda batch, head, q, k: sees(q, k), None, None, tokens + more, tokens + more, device=self._device
            )
        cap = None if softcap is None else lambda score, *_: softcap * torch.tanh(score / softcap)
        out: Tensor = _compiled(flex_attention, self._device.type)(
            *(F.pad(states, (0, 0, 0, more)) for states in (query, key, value)),
            cap,
            self._block_masks[window],
            scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return out[:, :, :tokens]

    def _plan(self, window: int | None, *, capped: bool) -> _Plan:
        if (window, capped) not in self._plans:
            sees = visible(self.pack.until, self._positions, window)
            # Scores that are capped are held, so that no block may be long.
            found = blocks(self.pack.segments, self._size, window, None if capped else self._long)
            self._plans[window, capped] = _Plan(
                blocks=[self._met(block, sees) for block in found if not block.long],
                long=[(block.start, block.end) for block in found if block.long],
            )
        return self._plans[window, capped]

    def _met(self, block: Block, sees: Visible) -> Met:
        own = block.start, block.end
        tokens = [torch.arange(start, end, device=self._device) for start, end in (*block.above, own)]
        keys = [*block.above, own]
        if block.above and block.above[-1][1] == block.start:
            keys[-2:] = [(block.above[-1][0], block.end)]
        return Met(block.start, block.end, keys, ~sees(tokens[-1][:, None], torch.cat(tokens)[None, :]))


@cache
def _compiled(function: Callable[..., Any], device: str) -> Callable[..., Any]:
    # Packs differ in length. Uncompiled, FlexAttention would hold all scores: rather than that it shall fail, if there
    # are too many kinds of packs.
    return torch.compile(function, dynamic=True, fullgraph=True) if device == "cuda" else function


@cache
def _tell_of_dropout() -> None:
    log.warning(
        "the decoder drops attention weights, which FlexAttention can't: its packs go through in small blocks, slowly; "
        "set its attention dropout to 0 to spare that"
    )


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
    if torch.is_autocast_enabled(query.device.type):
        # Rotary embeddings leave queries and keys wider than values.
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
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
