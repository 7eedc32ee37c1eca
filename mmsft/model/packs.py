"""Tells whether a decoder computes the same in a pack of trees as in threads by themselves."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from mmsft.model.attention import Trees, Unsupported, attend_by_trees
from mmsft.model.modes import evaluating
from mmsft.types import Pack, Segment

_PROBE: Final = "mmsft-probe"
# Relative to a token's state. Another order of additions makes 1e-5 in SmolLM2-135M, 2e-3 in bf16 and 6e-3 in fp16; a
# branch whose positions are shifted by one, the least of faults, 0.07 or more.
_ROUNDING: Final = {torch.float32: 1e-3, torch.bfloat16: 2e-2, torch.float16: 2e-2}
# Of gradients, which come from further away.
_WIDER: Final = 5


@dataclass(frozen=True)
class _Forest:
    """A tree of two branches and, behind it, a thread of its own.

    Attributes:
        scale: lengths are multiples of it.
    """

    scale: int

    @property
    def pack(self) -> Pack:
        """Its segments."""
        first, second, third, last = (self.scale * length for length in (3, 5, 8, 12))
        segments = (Segment(0, first), Segment(first, second, 0), Segment(second, third, 0), Segment(third, last))
        until = torch.tensor([third, second, third, last])
        lengths = torch.tensor([segment.end - segment.start for segment in segments])
        return Pack(segments, until.repeat_interleave(lengths))

    @cached_property
    def threads(self) -> list[list[int]]:
        """The tokens of each thread."""
        root, one, other, alone = (list(range(segment.start, segment.end)) for segment in self.pack.segments)
        return [root + one, root + other, alone]

    @property
    def positions(self) -> Tensor:
        """[T] of the tokens in their threads."""
        position = {token: index for thread in self.threads for index, token in enumerate(thread)}
        return torch.tensor([position[token] for token in range(len(position))])


class _Watched(Trees):
    """Trees that note how they are asked; their blocks are small, so that there are several."""

    def __init__(self, pack: Pack, positions: Tensor) -> None:
        super().__init__(pack, positions, 8)
        self.windows: list[int | None] = []

    def attend(self, query: Tensor, key: Tensor, value: Tensor, **how: Any) -> Tensor:
        self.windows.append(how["window"])
        return super().attend(query, key, value, **how)


def body_of(decoder: PreTrainedModel) -> nn.Module:
    """Returns a decoder without its head; of an encoder–decoder what is behind the encoder."""
    if decoder.config.is_encoder_decoder:
        return decoder.get_decoder()  # type: ignore[no-any-return]
    body: Any = decoder.base_model
    # A prefix that names no part of the model, as Llama 4's, leaves the whole.
    return decoder.get_submodule("model") if body is decoder else body  # type: ignore[no-any-return]


@torch.enable_grad()
def why_not_packed(decoder: PreTrainedModel) -> str | None:
    """Runs a small pack through a decoder, and its threads one by one.

    Ask it where and how the decoder is to compute: on its device, under autocast if need be.

    Returns:
        Why the decoder can't take packs; None if it can: every layer asked our attention, with the window of its mask,
        and the hidden states and their gradients are the same.
    """
    body = body_of(decoder)
    device = decoder.device
    forest = _Forest(24 if device.type == "cuda" else 1)  # there more than one of FlexAttention's own blocks
    positions = forest.positions.to(device)[None]
    ids = torch.arange(positions.shape[1], device=device)[None] + 5
    embeds = decoder.get_input_embeddings()(ids % decoder.config.get_text_config().vocab_size)
    embeds = embeds.detach().requires_grad_()
    masks: list[int | None] = []

    def mask(*args: Any, local_size: int | None = None, **kwargs: Any) -> None:
        masks.append(local_size)

    def states(tokens: list[int] | slice, **how: Any) -> Tensor:
        out: Tensor = body(
            inputs_embeds=embeds[:, tokens], position_ids=positions[:, tokens], use_cache=False, **how
        ).last_hidden_state[0]
        return out

    AttentionInterface.register(_PROBE, attend_by_trees)
    AttentionMaskInterface.register(_PROBE, mask)
    pack = forest.pack
    trees = _Watched(Pack(pack.segments, pack.until.to(device)), positions[0])
    padded = decoder.config._attn_implementation
    with evaluating(decoder):
        alone = _Learned.from_states(torch.cat([states(thread) for thread in forest.threads]), embeds)
        order = [token for thread in forest.threads for token in thread]
        try:
            decoder.set_attn_implementation(_PROBE)
            together = _Learned.from_states(states(slice(None), trees=trees)[order], embeds)
            with torch.no_grad():
                unlearned = states(slice(None), trees=_Watched(trees.pack, positions[0]))[order]
        except Unsupported as error:
            return str(error)
        except Exception as error:  # what a family's code makes of a pack that it wasn't written for
            return f"a pack makes its code fail ({type(error).__name__}: {str(error).partition(chr(10))[0]})"
        finally:
            decoder.set_attn_implementation(padded)
    rounding = _rounding(together.states)
    return (
        _windows_differ(decoder, trees.windows, masks)
        or _differ("hidden states", together.states, alone.states, rounding)
        or _differ("hidden states without gradients", unlearned, alone.states, rounding)
        or _differ("gradients", together.gradient, alone.gradient, rounding * _WIDER)
    )


def _windows_differ(decoder: PreTrainedModel, windows: list[int | None], masks: list[int | None]) -> str | None:
    layers = decoder.config.get_text_config().num_hidden_layers
    if len(windows) != layers:
        return f"{len(windows)} of its {layers} layers attend by way of transformers' interface"
    if not masks:
        return "it makes attention masks of its own"
    asked, given = ({size for size in sizes if size is not None} for sizes in (masks, windows))
    if asked != given:
        return f"its masks have windows of {sorted(asked) or 'no'} tokens, its layers ask for {sorted(given) or 'none'}"
    return None


class _Learned(NamedTuple):
    """Hidden states, and the gradient of a mixture of them with regard to the embeddings."""

    states: Tensor
    gradient: Tensor

    @classmethod
    def from_states(cls, states: Tensor, embeds: Tensor) -> "_Learned":
        weights = torch.arange(states.numel(), device=states.device).view(states.shape).sin()
        (gradient,) = torch.autograd.grad((states.float() * weights).sum(), embeds)
        return cls(states.detach(), gradient[0])


def _rounding(states: Tensor) -> float:
    device = states.device.type
    computed = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype
    return _ROUNDING.get(computed, 1e-3)


def _differ(what: str, packed: Tensor, alone: Tensor, most: float) -> str | None:
    # Token by token: the first of a thread is often far larger than the others.
    worst = float(((packed.float() - alone.float()).norm(dim=-1) / alone.float().norm(dim=-1)).max())
    if worst <= most:
        return None
    return f"in a pack its {what} differ from those of threads by themselves, by {worst:.1e} of their size"
