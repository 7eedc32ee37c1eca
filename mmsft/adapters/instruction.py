"""What a Q-Former reads of what is asked: the text as ids of its own tokenizer."""

# transformers takes seconds to import, and most data workers need it not at all: it is imported where it is used.

from functools import cache
from typing import Any, Final

from mmsft.errors import ConfigError
from mmsft.modalities.hub import loading, located

BESIDE: Final = "qformer_tokenizer"
"""The folder in which InstructBLIP's processor keeps the tokenizer, beside the weights."""


def ids_of(text: str, tokenizer: Any, most: int) -> tuple[int, ...]:
    """Returns a text's tokens between those that begin and end one; of a long text its end, as InstructBLIP has it.

    Args:
        text: what is asked; what looks like a control token in it is text.
        tokenizer: of the Q-Former, as of `load_tokenizer`.
        most: tokens that are kept, those at both ends included.
    """
    return tuple(tokenizer(text, truncation=True, max_length=most, split_special_tokens=True)["input_ids"])


@cache
def load_tokenizer(name: str, subfolder: str = "") -> Any:
    """Loads the tokenizer of a Q-Former.

    Args:
        name: a hub id, a folder, or ``asset:NAME``.
        subfolder: where it lies in there.

    Raises:
        ConfigError: it can't be loaded, or isn't a fast one.
    """
    from transformers import AutoTokenizer

    with loading("the Q-Former's tokenizer", name):
        tokenizer: Any = AutoTokenizer.from_pretrained(located(name), subfolder=subfolder, truncation_side="left")
    if not tokenizer.is_fast:
        raise ConfigError(f"{name}: the Q-Former's tokenizer has no fast form (tokenizer.json), which mmsft needs")
    return tokenizer
