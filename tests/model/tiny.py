"""Tiny random parts that the model's tests are made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from mmsft.adapters import Mlp2xGelu
from mmsft.adapters.spec import Adapter
from mmsft.data.collate import tokens_of
from mmsft.modalities import Clip
from mmsft.modalities.spec import Modality
from mmsft.model.fusion import MultimodalModel
from mmsft.model.tower import Tower
from mmsft.types import Batch, BatchTargets, Grid, Media, MediaBatch, MediaGroup, MediaUse

VOCABULARY = 50
IMG = -1
"""Stands for a slot in the ids of a `Row`."""


def tokenizer() -> PreTrainedTokenizerFast:
    words = {word: index for index, word in enumerate(["<unk>", "<s>", "</s>", *(f"w{n}" for n in range(47))])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", bos_token="<s>", unk_token="<unk>")


def llama_config(**changes: Any) -> LlamaConfig:
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.3,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return LlamaConfig(**settings | changes)


def llama(**changes: Any) -> LlamaForCausalLM:
    model: LlamaForCausalLM = LlamaForCausalLM(llama_config(**changes)).eval()
    return model


def clip_config() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
        initializer_factor=3.0,
    )


def clip_folder(folder: Path) -> Path:
    CLIPVisionModel(clip_config()).save_pretrained(folder)
    return folder


def decoder_folder(folder: Path, decoder: PreTrainedModel | None = None) -> Path:
    (decoder or llama()).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def model_with_tower(
    modality: Modality, adapter: Adapter | None = None, decoder: PreTrainedModel | None = None
) -> MultimodalModel:
    decoder = decoder or llama()
    embedding: Any = decoder.get_input_embeddings()
    width: int = embedding.weight.shape[1]
    return MultimodalModel(decoder, {"image": Tower(modality, adapter or Mlp2xGelu(), width)}).eval()


def llava_like(folder: Path) -> MultimodalModel:
    return model_with_tower(Clip(str(clip_folder(folder))))


@dataclass(frozen=True)
class Row:
    """Ids with `IMG` at the slots, the pictures by key in order, and how many slots each fills."""

    ids: Sequence[int]
    images: Sequence[tuple[str, Tensor]] = ()
    learn_from: int = 1


def batch_of(rows: Sequence[Row], grid: Grid = Grid(1, 2, 2), side: str = "right") -> Batch:  # noqa: B008 - frozen
    width = max(len(row.ids) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    positions, mask = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    at: list[int] = []
    token: list[int] = []
    for number, row in enumerate(rows):
        start = width - len(row.ids) if side == "left" else 0
        where = slice(start, start + len(row.ids))
        ids[number, where] = torch.tensor(row.ids)
        positions[number, where] = torch.arange(len(row.ids))
        mask[number, where] = True
        learned = [index for index in range(row.learn_from, len(row.ids)) if row.ids[index] != IMG]
        at += [number * width + start + index - 1 for index in learned]
        token += [row.ids[index] for index in learned]
    slots = (ids == IMG).flatten().nonzero().flatten()
    targets = BatchTargets(
        torch.tensor(at, dtype=torch.long),
        torch.tensor(token, dtype=torch.long),
        torch.ones(len(at)),
        torch.zeros(len(at), dtype=torch.long),
    )
    names = tuple(f"rows.jsonl:{number + 1}" for number in range(len(rows)))
    media = {"image": _media(rows, slots, grid)} if len(slots) else {}
    return Batch(names, ids.clamp(min=0), positions, mask, targets, media)


def _media(rows: Sequence[Row], slots: Tensor, grid: Grid) -> MediaBatch:
    distinct: Mapping[str, Tensor] = {key: pixels for row in rows for key, pixels in row.images}
    index = {key: number for number, key in enumerate(distinct)}
    pixels = torch.stack(list(distinct.values()))
    group = MediaGroup({"pixels": pixels}, grid, tuple(Media("image", key) for key in distinct))
    uses = []
    for number, row in enumerate(rows):
        each = sum(token == IMG for token in row.ids) // max(1, len(row.images))
        uses += [MediaUse(0, index[key], each, number) for key, _ in row.images]
    return MediaBatch((group,), tuple(uses), slots, tokens_of((group,), uses))


def image(seed: int, side: int = 8) -> tuple[str, Tensor]:
    return f"{seed}.png", torch.randn(3, side, side, generator=torch.Generator().manual_seed(seed))


def mixed_rows() -> list[Row]:
    """Seven rows: text, one picture, two pictures, a picture at the end, one picture that two rows share."""
    one, two, three = image(1), image(2), image(3)
    slots = [IMG] * 4
    return [
        Row([1, 5, 6, 7, 8, 2]),
        Row([1, *slots, 9, 10, 11, 2], [one], learn_from=6),
        Row([1, 4, *slots, 5, *slots, 12, 2], [two, three], learn_from=11),
        Row([1, 20, 21]),
        Row([1, 9, *slots, 30, 31, 32, 33, 2], [one], learn_from=7),
        Row([1, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 2]),
        Row([*slots, 40, 2], [three], learn_from=4),
    ]
