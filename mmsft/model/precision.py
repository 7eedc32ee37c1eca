"""Has a decoder whose matrices are held in 16 bits compute what autocast computes over ones of fp32, bit for bit."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

_WIDE: Final = (torch.float32, torch.float64)


def held(decoder: PreTrainedModel) -> torch.dtype:
    """Returns the type of the decoder's own matrices; vectors, new tokens and LoRA may be wider."""
    embedding: Any = decoder.get_input_embeddings()
    dtype: torch.dtype = getattr(embedding, "base_layer", embedding).weight.dtype
    return dtype


def widen(decoder: PreTrainedModel) -> None:
    """Holds a decoder's vectors, the weights of its norms among them, and what its layers add up in fp32.

    Autocast rounds what is multiplied by a matrix, and nothing else. A decoder all of whose weights are in 16 bits
    also rounds the sum of its layers after each of them, and learns worse for it.
    """
    if held(decoder) in _WIDE:
        return
    for parameter in decoder.parameters():
        if parameter.ndim < 2:
            parameter.data = parameter.data.float()
    decoder.get_input_embeddings().register_forward_hook(_unrounded)


def fill_up(decoder: PreTrainedModel) -> None:
    """Holds in fp32 what is held in 16 bits; its values stay what they are."""
    for parameter in decoder.parameters():
        if parameter.dtype not in _WIDE:
            parameter.data = parameter.data.float()


def rounding(decoder: PreTrainedModel) -> AbstractContextManager[object]:
    """Returns the autocast that a decoder's matrices need, whatever their inputs are; none for those of fp32."""
    dtype = held(decoder)
    return nullcontext() if dtype in _WIDE else torch.autocast(decoder.device.type, dtype)


def _unrounded(embedding: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output.float()
