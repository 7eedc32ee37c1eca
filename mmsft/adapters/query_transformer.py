"""Learned queries that look at features: the transformer inside each kind of Q-Former, as transformers has it."""

# transformers takes seconds to import, and most data workers need it not at all: it is imported where it is used.

import copy
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Final

import torch
from pydantic import ConfigDict
from torch import Tensor, nn
from torch.nn import functional as F

from mmsft.adapters.settings import below, refuse
from mmsft.errors import ConfigError
from mmsft.modalities.pretrained import fill, read_settings, read_tensors
from mmsft.types import Context

WHAT: Final = "the Q-Former of"
_DRAWN: Final = 0.02
"""Standard deviation of fresh queries (BLIP-2)."""


@dataclass(frozen=True)
class Queries:
    """Sizes of a Q-Former; BLIP-2's, which are BERT-base's.

    Attributes:
        queries: learned ones, each of which becomes a token.
        layers: of self-attention and feed-forward.
        cross_every: of so many layers the first also attends to the features.
        heads: of the attention.
        width: of the queries.
        inner: width of the feed-forward layers.
        dropout: in all layers.
    """

    queries: int = 32
    layers: int = 12
    cross_every: int = 2
    heads: int = 12
    width: int = 768
    inner: int = 3072
    dropout: float = 0.1

    def __post_init__(self) -> None:
        refuse(self._problems())

    def _problems(self) -> Iterator[str]:
        yield from below(1, queries=self.queries, layers=self.layers, cross_every=self.cross_every, heads=self.heads)
        yield from below(1, width=self.width, inner=self.inner)
        if self.heads > 0 and self.width % self.heads:
            yield f"width: {self.width} can't be divided among {self.heads} heads"
        if not 0 <= self.dropout < 1:
            yield f"dropout: from 0 to below 1, got {self.dropout}"


@dataclass(frozen=True)
class BlipQueries(Queries):
    """A Q-Former that may begin as a pretrained one.

    Attributes:
        weights: a BLIP-2, or with `instruction` an InstructBLIP, whose Q-Former of the same sizes it begins as: a hub
            id, a folder, or ``asset:NAME``. None = a fresh one.
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    weights: str | None = None


class QueryTransformer(nn.Module):
    """Queries and the Q-Former of transformers, which computes what they become."""

    def __init__(self, spec: Queries, d_in: int, vocabulary: int | None = None) -> None:
        """Builds it, with the weights that the spec names.

        Args:
            spec: its sizes.
            d_in: width of the features.
            vocabulary: tokens of what is asked, which the queries see as well; None = they see the features alone.

        Raises:
            ConfigError: the weights can't be loaded, or are of other sizes.
        """
        from transformers import Blip2QFormerModel, InstructBlipQFormerModel

        super().__init__()
        weights = spec.weights if isinstance(spec, BlipQueries) else None
        config = _fresh(spec, d_in, vocabulary) if weights is None else _pretrained(spec, d_in, vocabulary, weights)
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = spec.dropout
        self.queries = nn.Parameter(torch.randn(spec.queries, spec.width) * _DRAWN)
        self.qformer: Any = (Blip2QFormerModel if vocabulary is None else InstructBlipQFormerModel)(config)
        if weights is not None:
            [queries] = read_tensors(WHAT, weights, "query_tokens").values()
            self.queries.data.copy_(queries[0])
            fill(self.qformer, read_tensors(WHAT, weights, "qformer."), WHAT, weights)

    def forward(self, x_NLD: Tensor, context: Context | None = None) -> Tensor:
        """Features [N, L, D], and what is asked about each → what the queries become, [N, Q, width]."""
        inputs = {"query_embeds": self.queries.expand(len(x_NLD), -1, -1), "encoder_hidden_states": x_NLD}
        count = len(self.queries)
        if context is not None:
            # A mask of four dimensions is taken as it is; of one of two the library would ask the device for values.
            seen_NS = F.pad(context.mask, (count, 0), value=True)
            inputs |= {"input_ids": context.ids, "attention_mask": seen_NS[:, None, None]}
        found: Tensor = self.qformer(**inputs).last_hidden_state[:, :count]
        return found


def _fresh(spec: Queries, d_in: int, vocabulary: int | None) -> Any:
    """Returns the configuration of a fresh Q-Former."""
    from transformers import Blip2QFormerConfig, InstructBlipQFormerConfig

    values: dict[str, Any] = {name: getattr(spec, field) for name, field in _FIELDS.items()}
    values["encoder_hidden_size"] = d_in
    if vocabulary is None:
        return Blip2QFormerConfig(**values)
    return InstructBlipQFormerConfig(**values, vocab_size=vocabulary)


def _pretrained(spec: Queries, d_in: int, vocabulary: int | None, weights: str) -> Any:
    """Returns the configuration of a pretrained Q-Former, which is of the same sizes."""
    whole: Any = read_settings(WHAT, weights)
    kind, way = ("blip-2", "without") if vocabulary is None else ("instructblip", "with")
    if whole.model_type != kind:
        raise ConfigError(f"{WHAT} {weights!r}: that is a {whole.model_type} model; {way} `instruction`, name a {kind}")
    config = copy.deepcopy(whole.qformer_config)
    there = {field: getattr(config, name) for name, field in _FIELDS.items()}
    there = {"queries": whole.num_query_tokens, **there, "the features' width": config.encoder_hidden_size}
    here = {**asdict(spec), "the features' width": d_in}
    wrong = [f"{name} is {size} there and {here[name]} here" for name, size in there.items() if size != here[name]]
    if vocabulary is not None and vocabulary > config.vocab_size:
        wrong.append(f"the tokenizer has {vocabulary} tokens, and the Q-Former there {config.vocab_size}")
    if wrong:
        raise ConfigError(f"{WHAT} {weights!r} is of other sizes: {'; '.join(wrong)}; set them as they are there")
    return config


_FIELDS: Final = {
    "num_hidden_layers": "layers",
    "cross_attention_frequency": "cross_every",
    "num_attention_heads": "heads",
    "hidden_size": "width",
    "intermediate_size": "inner",
}
"""By the name that transformers has for it."""
