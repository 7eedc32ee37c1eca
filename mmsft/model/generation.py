"""Continues prompts token by token."""

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor
from transformers import GenerationConfig

from mmsft.errors import ConfigError
from mmsft.model.fusion import MultimodalModel
from mmsft.model.modes import evaluating
from mmsft.model.precision import rounding
from mmsft.types import Batch

_COLDEST: Final = 1e-6


@torch.no_grad()
def generate(
    model: MultimodalModel,
    batch: Batch,
    *,
    max_new_tokens: int,
    stop_ids: Collection[int],
    temperature: float = 0.0,
    seed: int | None = None,
) -> list[list[int]]:
    """Continues each row of a left-padded batch; an encoder–decoder's replies are continued from what they begin with.

    Settings that the decoder's authors ship with it (penalties, top-p) don't apply: what is measured is the model.

    Args:
        model: put in eval mode while it generates.
        batch: prompts, padded at the left.
        max_new_tokens: longest continuation.
        stop_ids: tokens that end one; they aren't part of what is returned.
        temperature: 0 takes the likeliest token, otherwise tokens are drawn.
        seed: of the draws; None continues the global generator.

    Returns:
        The new ids of each row.

    Raises:
        ConfigError: an argument is out of its bounds.
    """
    _refuse(max_new_tokens, temperature, seed)
    stops = sorted(stop_ids)
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature > 0 else {"do_sample": False}
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=stops or None,
        pad_token_id=stops[0] if stops else 0,
        decoder_start_token_id=getattr(model.decoder.config, "decoder_start_token_id", None),
        use_cache=True,
        **sampling,
    )
    devices = [batch.input_ids.device] if batch.input_ids.is_cuda else []
    decoder: Any = model.decoder
    model.attend(packed=False)
    with _only(settings, model), evaluating(model), torch.random.fork_rng(devices, enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        with rounding(decoder):
            new = decoder.generate(**_inputs(model, batch))
    return [_until_stop(row, set(stops)) for row in new[:, _given(batch) :].tolist()]


def _inputs(model: MultimodalModel, batch: Batch) -> dict[str, Tensor]:
    embeds, prompts = model.embed(batch), batch.prompts
    if prompts is None:
        return {"inputs_embeds": embeds, "attention_mask": batch.mask.long()}
    return {
        "inputs_embeds": embeds[prompts.of],
        "attention_mask": prompts.mask.long()[prompts.of],
        "decoder_input_ids": batch.input_ids,
    }


def _given(batch: Batch) -> int:
    """Returns how many of its inputs `generate` repeats: ids, but not embeddings."""
    return 0 if batch.prompts is None else batch.input_ids.shape[1]


def _refuse(max_new_tokens: int, temperature: float, seed: int | None) -> None:
    if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens: {max_new_tokens!r} new tokens; write a whole number of 1 or more")
    # Logits are divided by it, in float32.
    if temperature != 0 and not (_COLDEST <= temperature < math.inf):
        raise ConfigError(f"temperature: {temperature!r}; write 0 for the likeliest token, or {_COLDEST:g} or more")
    if seed is not None and not (isinstance(seed, int) and 0 <= seed < 1 << 63):
        raise ConfigError(f"seed: {seed!r}; write a whole number from 0 to {(1 << 63) - 1}, or none")


@contextmanager
def _only(settings: GenerationConfig, model: MultimodalModel) -> Iterator[None]:
    # What a configuration leaves out, transformers takes from the decoder's own, so that one has to go.
    shipped = model.decoder.generation_config
    model.decoder.generation_config = settings
    try:
        yield
    finally:
        model.decoder.generation_config = shipped


def _until_stop(ids: list[int], stops: set[int]) -> list[int]:
    end = next((index for index, token in enumerate(ids) if token in stops), len(ids))
    return ids[:end]
