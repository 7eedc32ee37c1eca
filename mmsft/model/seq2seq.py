"""Runs an encoder–decoder: the encoder once over each prompt, the decoder over the replies."""

from typing import Any

import torch
from torch import Tensor

from mmsft.types import Batch, BatchTargets, Prompts


def embedding_scale(decoder: Any) -> float:
    """Returns by what the encoder multiplies the embeddings that it makes itself, but not those that it is given."""
    return float(getattr(decoder.get_encoder(), "embed_scale", 1.0))


def reply_inputs(decoder: Any, batch: Batch, prompts: Prompts, embeds: Tensor) -> dict[str, Any]:
    """Runs the encoder; returns what the decoder behind it takes.

    Args:
        decoder: the encoder–decoder.
        batch: of replies.
        prompts: the batch's.
        embeds: [E, S, D] the prompts' embeddings.
    """
    return {
        "input_ids": batch.input_ids,
        "attention_mask": batch.mask.long(),
        "encoder_hidden_states": _read(decoder, prompts, embeds).last_hidden_state,
        "encoder_attention_mask": prompts.mask.long()[prompts.of],
        "use_cache": False,
    }


def whole_inputs(decoder: Any, batch: Batch, prompts: Prompts, embeds: Tensor) -> dict[str, Any]:
    """Runs the encoder; returns what the encoder–decoder then takes as a whole. Arguments as of `reply_inputs`."""
    return {
        "encoder_outputs": _read(decoder, prompts, embeds),
        "attention_mask": prompts.mask.long()[prompts.of],
        "decoder_input_ids": batch.input_ids,
        "decoder_attention_mask": batch.mask.long(),
        "use_cache": False,
    }


def exchange(ids: Tensor) -> Batch:
    """Returns a batch of a prompt and a reply of the same ids [1, T], of which nothing is learned."""
    mask, nothing = torch.ones_like(ids, dtype=torch.bool), ids.new_zeros(0)
    targets = BatchTargets(nothing, nothing, nothing.float(), nothing)
    positions = torch.arange(ids.shape[1], device=ids.device)[None]
    prompts = Prompts(ids, mask, ids.new_zeros(1))
    return Batch(("exchange",), ids, positions, mask, targets, media={}, prompts=prompts)


def _read(decoder: Any, prompts: Prompts, embeds: Tensor) -> Any:
    """Returns the encoder's output with hidden states [B, S, D]: for each reply those of its prompt."""
    output = decoder.get_encoder()(inputs_embeds=embeds, attention_mask=prompts.mask.long())
    output.last_hidden_state = output.last_hidden_state.index_select(0, prompts.of)
    return output
