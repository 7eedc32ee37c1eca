"""Builds the root module that a config describes."""

import logging
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from mmsft.config import ModelConfig
from mmsft.errors import ConfigError
from mmsft.model.decoder import load_decoder
from mmsft.model.fusion import MultimodalModel
from mmsft.model.new_tokens import add_new_tokens, grow_vocabulary
from mmsft.model.tower import Tower
from mmsft.model.tuning.lora import add_lora

log = logging.getLogger(__name__)


def build_model(config: ModelConfig, tokenizer: PreTrainedTokenizerFast, *, empty: bool = False) -> MultimodalModel:
    """Loads decoder and towers, and adds adapters, LoRA and new tokens as the config says.

    Fresh parts draw from torch's global generator: seed it for the same ones again.

    Args:
        config: of the model.
        tokenizer: with the config's new tokens.
        empty: leave the decoder and what is added to it without values, on the meta device: for names, shapes and
            counts of a model that this machine couldn't hold.

    Raises:
        ConfigError: a part can't be loaded, or names what isn't there.
    """
    decoder = load_decoder(config.decoder, empty=empty)
    _fit_vocabulary(decoder, config, tokenizer)
    if config.decoder.lora:
        add_lora(decoder, config.decoder.lora)
    embedding: Any = decoder.get_input_embeddings()
    width = embedding.weight.shape[1]
    towers = {
        name: Tower(tower.modality.value, tower.adapter.value, width, getattr(torch, tower.dtype))
        for name, tower in config.towers.items()
    }
    model = MultimodalModel(decoder, towers)
    model.find_head()
    return model


def _fit_vocabulary(decoder: PreTrainedModel, config: ModelConfig, tokenizer: PreTrainedTokenizerFast) -> None:
    vocabulary = tokenizer.get_vocab()
    new = [vocabulary.get(token, -1) for token in config.decoder.new_tokens]
    known = len(tokenizer) - len(new)
    if sorted(new) != list(range(known, len(tokenizer))):
        raise ConfigError(
            f"decoder.new_tokens: their ids {new} aren't the last of the tokenizer's {len(tokenizer)}; "
            "load it with mmsft.model.load_tokenizer and the same config"
        )
    embedding: Any = decoder.get_input_embeddings()
    rows = len(embedding.weight)
    if known > rows:
        log.warning(
            "the tokenizer has %d tokens and the decoder %d: the others begin as the mean of these", known, rows
        )
        grow_vocabulary(decoder, known, rows)
    if new:
        add_new_tokens(decoder, known, len(new))
