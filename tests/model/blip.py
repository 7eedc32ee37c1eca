"""Tiny BLIP-2 and InstructBLIP models of random weights, and ours with the same weights."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipQFormerConfig,
    InstructBlipVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.models.bert.tokenization_bert import BertTokenizer

from mmsft.adapters import QFormer
from mmsft.modalities import Blip
from mmsft.model.fusion import MultimodalModel
from mmsft.types import Batch
from tests.model.tiny import llama_config, model_with_tower

IMAGE_ID = 49
SIZES: dict[str, Any] = {"queries": 3, "layers": 3, "heads": 2, "width": 8, "inner": 16}
"""Of a Q-Former, as a config states them."""
QFORMER: dict[str, Any] = {
    "hidden_size": 8,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 40,
    "max_position_embeddings": 512,
}
"""The same for transformers."""
VISION: dict[str, Any] = {
    "hidden_size": 12,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}


def blip2() -> Any:
    """Returns transformers' BLIP-2 over a Llama, in which everything counts."""
    config = Blip2Config(
        vision_config=Blip2VisionConfig(**VISION),
        qformer_config=Blip2QFormerConfig(**QFORMER),
        text_config=llama_config(),
        num_query_tokens=SIZES["queries"],
        image_token_index=IMAGE_ID,
    )
    return shaken(Blip2ForConditionalGeneration(config))


def instructblip(decoder: LlamaConfig) -> Any:
    """Returns transformers' InstructBLIP over a Llama, in which everything counts."""
    config = InstructBlipConfig(
        vision_config=InstructBlipVisionConfig(**VISION),
        qformer_config=InstructBlipQFormerConfig(**QFORMER),
        text_config=decoder,
        num_query_tokens=SIZES["queries"],
        image_token_index=IMAGE_ID,
    )
    return shaken(InstructBlipForConditionalGeneration(config))


def bert(folder: Path) -> Path:
    """Writes a tokenizer as BERT has it, of a few words."""
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] what which colour is it this the one how many ? ! . ##s red blue [ ] sep"
    BertTokenizer(vocab={word: number for number, word in enumerate(words.split())}).save_pretrained(folder)
    return folder


def shaken(model: Any) -> Any:
    """Draws all weights anew; transformers begins with zeros and near zeros, in which nothing shows."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        of_a_norm = parameter.ndim == 1 and name.endswith("weight")
        nn.init.normal_(parameter, mean=float(of_a_norm), std=0.4, generator=generator)
    return model.eval()


def ours(theirs: Any, folder: Path, **adapter: Any) -> MultimodalModel:
    """Returns our model with the weights of transformers', from its folder; those of the language model are copied."""
    theirs.save_pretrained(folder)
    decoder = LlamaForCausalLM(theirs.config.text_config).eval()
    decoder.load_state_dict(theirs.language_model.state_dict())
    spec = QFormer(**SIZES, weights=str(folder), projection=True, **adapter)
    return model_with_tower(Blip(str(folder)), spec, decoder)


def their_inputs(batch: Batch) -> dict[str, Tensor]:
    [media] = batch.media.values()
    ids = batch.input_ids.clone()
    ids.view(-1)[media.slots] = IMAGE_ID
    pixels = media.groups[0].tensors["pixels"]
    labels = torch.full_like(batch.input_ids, -100)
    labels.view(-1)[batch.targets.at + 1] = batch.targets.token
    return {
        "input_ids": ids,
        "attention_mask": batch.mask.long(),
        "pixel_values": pixels[[use.index for use in media.uses]],
        "labels": labels,
    }
