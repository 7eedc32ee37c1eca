"""Tells whether a decoder computes the same in a pack of trees as in threads by themselves."""

from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from mmsft.model.attention import Trees, Unsupported, attend_by_trees
from mmsft.model.modes import evaluating
from mmsft.types import Pack, Segment

_PROBE: Final = "mmsft-probe"
# A tree of two branches and, behind it, a thread of its own.
_SEGMENTS: Final = (Segment(0, 3), Segment(3, 5, 0), Segment(5, 8, 0), Segment(8, 12))
_THREADS: Final = ((0, 1, 2, 3, 4), (0, 1, 2, 5, 6, 7), (8, 9, 10, 11))
_UNTIL: Final = (8, 8, 8, 5, 5, 8, 8, 8, 12, 12, 12, 12)
_POSITIONS: Final = (0, 1, 2, 3, 4, 3, 4, 5, 0, 1, 2, 3)
# Relative to a token's state. Another order of additions makes 1e-5 in SmolLM2-135M, 2e-3 in bf16 and 6e-3 in fp16; a
# branch whose positions are shifted by one, the least of faults, 0.07 or more.
_ROUNDING: Final = {torch.float32: 1e-3, torch.bfloat16: 2e-2, torch.float16: 2e-2}


class _Watched(Trees):
    """Trees that note how they are asked."""

    def __init__(self, pack: Pack, positions: Tensor) -> None:
        super().__init__(pack, positions)
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


@torch.no_grad()
def why_not_packed(decoder: PreTrainedModel) -> str | None:
    """Runs a small pack through a decoder, and its threads one by one.

    Returns:
        Why the decoder can't take packs; None if it can: every layer asked our attention, with the window of its mask,
        and the hidden states are the same.
    """
    body = body_of(decoder)
    device = decoder.device
    ids = torch.arange(len(_POSITIONS), device=device) + 5
    embeds = decoder.get_input_embeddings()(ids[None])
    positions = torch.tensor([_POSITIONS], device=device)
    masks: list[int | None] = []

    def mask(*args: Any, local_size: int | None = None, **kwargs: Any) -> None:
        masks.append(local_size)

    AttentionInterface.register(_PROBE, attend_by_trees)
    AttentionMaskInterface.register(_PROBE, mask)
    trees = _Watched(Pack(_SEGMENTS, torch.tensor(_UNTIL, device=device)), positions[0])
    padded = decoder.config._attn_implementation
    with evaluating(decoder):
        apart = [
            body(
                inputs_embeds=embeds[:, list(thread)],
                position_ids=positions[:, list(thread)],
                use_cache=False,
            ).last_hidden_state[0]
            for thread in _THREADS
        ]
        try:
            decoder.set_attn_implementation(_PROBE)
            packed = body(inputs_embeds=embeds, position_ids=positions, use_cache=False, trees=trees)
        except Unsupported as error:
            return str(error)
        except Exception as error:  # what a family's code makes of a pack that it wasn't written for
            return f"a pack makes its code fail ({type(error).__name__}: {str(error).partition(chr(10))[0]})"
        finally:
            decoder.set_attn_implementation(padded)
    return _windows_differ(decoder, trees.windows, masks) or _states_differ(packed.last_hidden_state[0], apart)


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


def _states_differ(packed: Tensor, apart: list[Tensor]) -> str | None:
    alone = torch.cat(apart).float()
    together = packed[[token for thread in _THREADS for token in thread]].float()
    # Token by token: the first of a thread is often far larger than the others.
    worst = float(((together - alone).norm(dim=-1) / alone.norm(dim=-1)).max())
    if worst <= _ROUNDING.get(packed.dtype, 1e-3):
        return None
    return f"in a pack its hidden states differ from those of threads by themselves, by {worst:.1e} of their size"
