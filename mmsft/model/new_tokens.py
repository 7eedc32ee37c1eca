"""Rows for tokens that the decoder's vocabulary lacked, which learn while the old rows stay as they are."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel


class NewTokenEmbedding(nn.Module):
    """An embedding whose rows from `first` on are parameters of their own."""

    def __init__(self, base: nn.Embedding, first: int, count: int) -> None:
        super().__init__()
        self.base_layer = base
        self.first = first
        self.new_input = nn.Parameter(base.weight.detach()[first : first + count].to(torch.float32, copy=True))

    @property
    def weight(self) -> Tensor:
        """All rows, [V, D], as one embedding would hold them."""
        return _with_rows(self.base_layer.weight, self.new_input, self.first)

    def forward(self, ids: Tensor) -> Tensor:
        """Embeds ids of any shape."""
        index = ids - self.first
        new = (index >= 0) & (index < len(self.new_input))
        # Gemma's embeddings are scaled by a factor of their module's.
        own = F.embedding(index.clamp(0, len(self.new_input) - 1), self.new_input) * getattr(
            self.base_layer, "embed_scale", 1.0
        )
        base: Tensor = self.base_layer(ids)
        return torch.where(new[..., None], own.to(base.dtype), base)


class NewTokenHead(nn.Module):
    """A head whose rows from `first` on are parameters of their own, or those of a tied embedding."""

    def __init__(self, base: nn.Linear, first: int, rows: nn.Parameter) -> None:
        super().__init__()
        self.base_layer = base
        self.first = first
        self.new_output = rows

    @property
    def in_features(self) -> int:
        """Size of a hidden state."""
        return self.base_layer.in_features

    @property
    def out_features(self) -> int:
        """Size of the vocabulary; `weight` would copy all rows to tell it."""
        return self.base_layer.out_features

    @property
    def weight(self) -> Tensor:
        """All rows, [V, D], as one linear layer would hold them."""
        return _with_rows(self.base_layer.weight, self.new_output, self.first)

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., D] → logits [..., V]."""
        logits: Tensor = self.base_layer(hidden)
        end = self.first + len(self.new_output)
        bias = None if self.base_layer.bias is None else self.base_layer.bias[self.first : end]
        own = F.linear(hidden, self.new_output.to(hidden.dtype), bias)
        return torch.cat([logits[..., : self.first], own.to(logits.dtype), logits[..., end:]], -1)


def heads_tied(decoder: PreTrainedModel) -> bool:
    """Tells whether a decoder's head and its embeddings are one parameter."""
    both: tuple[Any, Any] = decoder.get_input_embeddings(), decoder.get_output_embeddings()
    embedding, head = (getattr(module, "base_layer", module).weight for module in both)
    return embedding is head


def grow_vocabulary(decoder: PreTrainedModel, size: int, known: int) -> None:
    """Gives the decoder rows for ids up to `size`; those from `known` on become the mean of the rows before.

    The mean is likely under the model's own distribution: a new token neither floods nor starves the softmax.
    """
    embedding: Any = decoder.get_input_embeddings()
    if size > len(embedding.weight):
        # T5's configuration always says that the head is tied; Flan-T5's own would be lost.
        stated = decoder.config.tie_word_embeddings
        decoder.config.tie_word_embeddings = heads_tied(decoder)
        decoder.resize_token_embeddings(size, mean_resizing=False)
        decoder.config.tie_word_embeddings = stated
    both: tuple[Any, Any] = decoder.get_input_embeddings(), decoder.get_output_embeddings()
    with torch.no_grad():
        for module in both:
            module.weight[known:size] = module.weight[:known].float().mean(0).to(module.weight.dtype)


def add_new_tokens(decoder: PreTrainedModel, first: int, count: int) -> None:
    """Puts the rows of ids `first` … `first` + `count` apart, so that they can learn without the others."""
    grow_vocabulary(decoder, first + count, first)
    embedding: Any = decoder.get_input_embeddings()
    head: Any = decoder.get_output_embeddings()
    tied = heads_tied(decoder)
    apart = NewTokenEmbedding(embedding, first, count)
    rows = (
        apart.new_input
        if tied
        else nn.Parameter(head.weight.detach()[first : first + count].to(torch.float32, copy=True))
    )
    decoder.set_input_embeddings(apart)
    decoder.set_output_embeddings(NewTokenHead(head, first, rows))


def _with_rows(weight: Tensor, rows: Tensor, first: int) -> Tensor:
    return torch.cat([weight[:first], rows.to(weight.dtype), weight[first + len(rows) :]])
