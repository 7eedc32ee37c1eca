"""A decoder's weights as its own class names them, with what was tuned beside them added."""

from collections.abc import Mapping
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import PreTrainedModel

from mmsft.errors import ConfigError
from mmsft.model.new_tokens import NewTokenEmbedding, NewTokenHead
from mmsft.model.tuning.lora import merged_weight


@torch.no_grad()
def merged_state(decoder: PreTrainedModel) -> dict[str, Tensor]:
    """Returns the state dict of an untuned decoder that computes the same: LoRA added, new tokens in their rows."""
    tuned = (".lora_", ".new_input", ".new_output")
    state: dict[str, Tensor] = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in decoder.state_dict().items()
        if not any(part in name for part in tuned)
    }
    for name, module in decoder.named_modules():
        if isinstance(module, LoraLayer):
            state[f"{name}.weight"] = merged_weight(module)
        elif isinstance(module, NewTokenEmbedding | NewTokenHead):
            state[f"{name}.weight"] = module.weight
    return state


def fill(empty: PreTrainedModel, state: Mapping[str, Tensor], tied: bool = True) -> None:
    """Gives a model that was built without weights its own.

    Args:
        empty: the model.
        state: its weights by name.
        tied: whether its head may be tied to its embeddings, as its configuration says: T5's says so of Flan-T5 too,
            which has a head of its own.

    Raises:
        ConfigError: names or shapes differ.
    """
    try:
        empty.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"{type(empty).__name__} can't hold this model's weights: {reason}") from error
    head: Any = empty.get_output_embeddings()
    own = head.weight
    empty.tie_weights()
    if not tied:
        head.weight = own
