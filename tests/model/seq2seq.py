"""Tiny random encoder–decoders, with tokenizers that put tokens around a text as theirs do."""

from pathlib import Path
from typing import Any

import torch
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from mmsft.data.chat import ChatEncoder
from mmsft.data.seq2seq import Sides
from mmsft.data.template import resolve_template
from mmsft.data.tokens import Tokenizer
from mmsft.types import Conversation, Text, Turn
from tests.data.conftest import byte_level
from tests.data.dialogues import three_slots

PAD, EOS, BOS = "<pad>", "</s>", "<s>"
FAMILIES = ("t5", "flan-t5", "bart")


def tokenizer(family: str) -> PreTrainedTokenizerFast:
    """Ends a text with ``</s>``; BART's also begins it with ``<s>``, and replies too."""
    bos = BOS if family == "bart" else None
    hf = byte_level((PAD, EOS, BOS), eos=EOS, bos=bos).hf
    hf.pad_token = PAD
    ids: dict[str, Any] = {token: hf.convert_tokens_to_ids(token) for token in (EOS, BOS)}
    single = f"{BOS} $A {EOS}" if bos else f"$A {EOS}"
    hf.backend_tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=list(ids.items()))
    return hf


def model(family: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """T5 ties its head and scales what goes into it; Flan-T5 does neither and has gates; BART adds a bias behind it."""
    torch.manual_seed(seed)
    hf: Any = tokenizer(family)
    sizes: dict[str, Any] = {"vocab_size": len(hf), "d_model": 16, "pad_token_id": hf.pad_token_id}
    sizes["eos_token_id"] = hf.eos_token_id
    if family == "bart":
        layers = {f"{side}_{what}": 2 for side in ("encoder", "decoder") for what in ("layers", "attention_heads")}
        widths = {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 256, "init_std": 0.3}
        ids = {"bos_token_id": hf.bos_token_id, "decoder_start_token_id": hf.eos_token_id}
        bart: PreTrainedModel = BartForConditionalGeneration(BartConfig(**sizes | layers | widths | ids | changes))
        bart.get_buffer("final_logits_bias").normal_()
        bart.eval()
        return bart
    gates: dict[str, Any] = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    layers = {"num_layers": 2, "num_heads": 2, "d_kv": 8, "d_ff": 32, "decoder_start_token_id": hf.pad_token_id}
    settings = sizes | layers | (gates if family == "flan-t5" else {}) | changes
    t5: PreTrainedModel = T5ForConditionalGeneration(T5Config(**settings))
    if family == "flan-t5":
        head: Any = t5.get_output_embeddings()
        head.weight = nn.Parameter(torch.randn_like(head.weight))
    t5.eval()
    return t5


def folder(path: Path, family: str, **changes: Any) -> Path:
    """Writes model and tokenizer."""
    model(family, **changes).save_pretrained(path)
    tokenizer(family).save_pretrained(path)
    return path


def encoder(family: str, **changes: Any) -> ChatEncoder:
    """Encodes for the family; a prompt is what the user says, and nothing else."""
    made = Tokenizer(tokenizer(family))
    start: int = model(family).config.decoder_start_token_id
    template = resolve_template("plain", made)
    return ChatEncoder(made, template, sides=Sides.of(made, start), slots=three_slots, **changes)


def talk(prompt: str, *replies: str) -> Conversation:
    """A prompt with its replies, as branches."""
    turns = [Turn("assistant", (Text(reply),), parent=0) for reply in replies]
    return Conversation("rows.jsonl:1", (Turn("user", (Text(prompt),)), *turns))
