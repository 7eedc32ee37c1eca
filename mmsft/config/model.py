"""The settings of a model: its decoder and its towers."""

from typing import Annotated, Literal

from pydantic import Field

from mmsft.config.strict import Strict
from mmsft.config.values import (
    AdapterSpec,
    ModalitySpec,
    Name,
    Strings,
    TowerName,
)


class LoraConfig(Strict):
    """LoRA on the decoder, by peft.

    Attributes:
        r: rank of the update.
        alpha: the update is scaled by alpha ÷ r.
        dropout: on what goes into the update.
        targets: names of linear layers under the decoder (``q_proj``, ``*.mlp.*``); ``all-linear`` is all but the head.
        rslora: scale by alpha ÷ √r instead.
        dora: learn the weights' magnitude apart from their direction.
    """

    r: int = Field(default=16, ge=1)
    alpha: float = Field(default=32, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: Annotated[Strings, Field(min_length=1)] = ("all-linear",)
    rslora: bool = False
    dora: bool = False


class DecoderConfig(Strict):
    """The language model.

    Attributes:
        name: a hub id, a folder, a ``.gguf`` file, or ``asset:NAME``; of a causal language model or an encoder–decoder.
        revision: branch, tag or commit of a hub id.
        dtype: in which its matrices are held and computed with; vectors and what learns are fp32. bfloat16 halves the
            memory, and computes what ``precision: bf16`` computes over fp32.
        lora: adds LoRA; it learns as ``decoder.lora``.
        new_tokens: added to the tokenizer as special tokens, which rows may use; they learn as ``decoder.new_tokens``.
        trust_remote_code: run the Python code that a hub id or folder brings along.
    """

    name: Name
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    lora: LoraConfig | None = None
    new_tokens: Strings = ()
    trust_remote_code: bool = False


class TowerConfig(Strict):
    """How one kind of media becomes tokens.

    Attributes:
        modality: how its files are read and encoded; `kind` chooses it, the other keys are the kind's own.
        adapter: how the features become tokens; `kind` chooses it, the other keys are the kind's own.
        dtype: in which the encoder's weights are held, fp32 if they learn. bfloat16 takes half the memory, and under
            ``precision: bf16`` no weight is rounded again for each batch.
    """

    modality: ModalitySpec
    adapter: AdapterSpec
    dtype: Literal["float32", "bfloat16"] = "float32"


class ModelConfig(Strict):
    """A decoder and its towers.

    Attributes:
        decoder: the language model.
        towers: the media that it takes, by the name of the modality in the data; a text-only model has none.
    """

    decoder: DecoderConfig
    towers: dict[TowerName, TowerConfig] = Field(default_factory=dict)
