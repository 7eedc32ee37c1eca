"""Tells whether a decoder computes the same in a pack of trees as in threads by themselves."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from mmsft.model.attention import Trees, Unsupported, attend_by_trees
from mmsft.model.modes import evaluating
from mmsft.model.precision import held, rounding
from mmsft.types import Pack, Segment

_PROBE: Final = "mmsft-probe"
# Relative to a token's state; in fp32 that of the worst token. There another order of additions makes 1e-5 in
# SmolLM2-135M, a branch whose positions are shifted by one, the least of faults, 0.07 or more. In 16 bits rounding
# moves one of its tokens by 0.2: there the mean counts, 0.02 if all is well, 0.08 if a branch sees another one.
_ROUNDING: Final = {torch.float32: 1e-3, torch.bfloat16: 4e-2, torch.float16: 4e-2}
# Of the outputs of one layer's attention, for which 16 bits are enough: an attention that errs is far off.
_KERNEL: Final = 2e-2
# Of gradients, which come from further away; in 16 bits those of SmolLM2-135M differ by 0.7 from rounding alone.
_WIDER: Final = 5


@dataclass(frozen=True)
class _Forest:
    """A tree of two branches and, behind it, a thread of its own.

    Attributes:
        device: of its tensors.
    """

    device: torch.device

    @property
    def scale(self) -> int:
        """Of its lengths; on CUDA there shall be more than one of FlexAttention's own blocks."""
        return 24 if self.device.type == "cuda" else 1

    @property
    def pack(self) -> Pack:
        """Its segments."""
        first, second, third, last = (self.scale * length for length in (3, 5, 8, 12))
        segments = (Segment(0, first), Segment(first, second, 0), Segment(second, third, 0), Segment(third, last))
        until = torch.tensor([third, second, third, last])
        lengths = torch.tensor([segment.end - segment.start for segment in segments])
        return Pack(segments, until.repeat_interleave(lengths).to(self.device))

    @cached_property
    def threads(self) -> list[list[int]]:
        """The tokens of each thread."""
        root, one, other, alone = (list(range(segment.start, segment.end)) for segment in self.pack.segments)
        return [root + one, root + other, alone]

    @property
    def positions(self) -> Tensor:
        """[T] of the tokens in their threads."""
        position = {token: index for thread in self.threads for index, token in enumerate(thread)}
        return torch.tensor([position[token] for token in range(len(position))], device=self.device)


class _Watched(Trees):
    """Trees that note how they are asked; their blocks are small, so that there are several.

    Args:
        pack: the segments.
        positions: [T] of the tokens in their threads.
        exact: attend in blocks on any device; else as in training, and compare that with blocks.
    """

    def __init__(self, pack: Pack, positions: Tensor, *, exact: bool) -> None:
        super().__init__(pack, positions, 8)
        self._exact = exact
        self.windows: list[int | None] = []
        self.apart: list[Tensor] = []

    def attend(self, query: Tensor, key: Tensor, value: Tensor, **how: Any) -> Tensor:
        self.windows.append(how["window"])
        if self._exact:
            return self.in_blocks(query, key, value, **how)
        out = super().attend(query, key, value, **how)
        with torch.no_grad():
            exact = self.in_blocks(query, key, value, **how).float()
            self.apart.append((out.float() - exact).norm() / exact.norm())
        return out

    def failed(self) -> str | None:
        """Says by how much a layer's attention differed from that in blocks, if it did by more than rounding."""
        worst = float(torch.stack(self.apart).max())
        return None if worst <= _KERNEL else f"attention on this device differs from that in blocks, by {worst:.1e}"


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

    Ask it where and how the decoder is to compute: on its device, under autocast if need be. States and gradients are
    compared without autocast, whose rounding would hide faults, and with attention in blocks; then attention as it is
    in training is compared with blocks, layer by layer.

    Returns:
        Why the decoder can't take packs; None if it can: every layer asked our attention, with the window of its mask,
        and the hidden states and their gradients are the same.
    """
    body = body_of(decoder)
    device, forest = decoder.device, _Forest(decoder.device)
    positions = forest.positions[None]
    embeds = _some_embeddings(decoder, positions.shape[1])
    masks: list[int | None] = []

    def mask(*args: Any, local_size: int | None = None, **kwargs: Any) -> None:
        masks.append(local_size)

    def states(tokens: list[int] | slice, **how: Any) -> Tensor:
        inputs = {"inputs_embeds": embeds[:, tokens], "position_ids": positions[:, tokens], "use_cache": False}
        return body(**inputs, **how).last_hidden_state[0]  # type: ignore[no-any-return]

    AttentionMaskInterface.register(_PROBE, mask)
    exact, trained = (_Watched(forest.pack, forest.positions, exact=exact) for exact in (True, False))
    padded, rounds = decoder.config._attn_implementation, torch.is_autocast_enabled(device.type)
    every, order = slice(None), [token for thread in forest.threads for token in thread]
    with evaluating(decoder), torch.autocast(device.type, enabled=False), rounding(decoder):
        alone = _Learned.from_states(torch.cat([states(thread) for thread in forest.threads]), embeds)
        try:
            decoder.set_attn_implementation(_PROBE)
            together = _Learned.from_states(states(every, trees=exact)[order], embeds)
            with torch.autocast(device.type, torch.bfloat16, enabled=rounds), rounding(decoder):
                _Learned.from_states(states(every, trees=trained), embeds)
                with torch.no_grad():
                    states(every, trees=trained)
        except torch.OutOfMemoryError:  # which says nothing of the family
            raise
        except Exception as error:  # what its code makes of a pack that it wasn't written for
            return _failure(error)
        finally:
            decoder.set_attn_implementation(padded)
    dtype = held(decoder)
    return (
        _windows_differ(decoder, exact.windows, masks)
        or _differ("hidden states", together.states, alone.states, dtype)
        or (_differ("gradients", together.gradient, alone.gradient, dtype, _WIDER) if dtype == torch.float32 else None)
        or trained.failed()
    )


def _failure(error: Exception) -> str:
    if isinstance(error, Unsupported):
        return str(error)
    return f"a pack makes its code fail ({type(error).__name__}: {str(error).partition(chr(10))[0]})"


def _some_embeddings(decoder: PreTrainedModel, count: int) -> Tensor:
    ids = torch.arange(count, device=decoder.device)[None] + 5
    embeds: Tensor = decoder.get_input_embeddings()(ids % decoder.config.get_text_config().vocab_size)
    return embeds.detach().requires_grad_()


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


def _differ(what: str, packed: Tensor, alone: Tensor, dtype: torch.dtype, wider: int = 1) -> str | None:
    # Token by token: the first of a thread is often far larger than the others.
    apart = (packed.float() - alone.float()).norm(dim=-1) / alone.float().norm(dim=-1)
    worst = float(apart.max() if dtype == torch.float32 else apart.mean())
    if worst <= wider * _ROUNDING.get(dtype, 1e-3):
        return None
    return f"in a pack its {what} differ from those of threads by themselves, by {worst:.1e} of their size"


AttentionInterface.register(_PROBE, attend_by_trees)
