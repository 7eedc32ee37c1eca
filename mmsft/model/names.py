"""Stable names for parameters: ours, whatever transformers, peft or a wrapper call them today."""

import re
from collections.abc import Iterable
from typing import Final

from torch import nn

# Each rule takes one accident of upstream out of a name. A name that upstream changes gets a rule here: the golden test
# tells, so that a user's checkpoint never does.
_RULES: Final = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        # torch.compile, DDP, FSDP and checkpoint wrappers
        (r"(^|\.)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.)", ""),
        (r"^\.?(?:module\.)?", ""),
        # new tokens' rows, beside the input and, where it isn't tied, the output embedding
        (r"^decoder\.(?:.+\.)?new_(input|output)$", r"decoder.new_tokens.\1"),
        # peft: its matrices under one prefix, the weights beside them as if it weren't there
        (r"^decoder\.(.+)\.lora_([AB])\.default\.weight$", r"decoder.lora.\1.\2"),
        (r"^decoder\.(.+)\.lora_magnitude_vector\.default\.weight$", r"decoder.lora.\1.magnitude"),
        (r"\.base_layer\.", "."),
        # an encoder's one attribute, and the level that CLIP had until transformers 5.6
        (r"^(towers\.[^.]+\.encoder)\.model\.(?:vision_model\.)?", r"\1."),
    )
)


_FRESH = re.compile(r"towers\.[^.]+\.adapter\.|decoder\.(?:lora|new_tokens)\.")


def canonical(name: str) -> str:
    """Returns the stable name of a parameter of the root module.

    ``decoder.…`` the base weights, ``decoder.lora.<layer>.A``, ``decoder.new_tokens.input``,
    ``towers.<name>.encoder.…`` and ``towers.<name>.adapter.…``.
    """
    for pattern, replacement in _RULES:
        name = pattern.sub(replacement, name)
    return name


def named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Returns the parameters by canonical name, in the model's order; a shared one is there once.

    Raises:
        ValueError: two parameters have one canonical name.
    """
    named: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        stable = canonical(name)
        if stable in named:
            raise ValueError(
                f"two parameters are called {stable!r}, one of them {name!r}: rename the module's attribute"
            )
        named[stable] = parameter
    return named


def fresh(names: Iterable[str]) -> set[str]:
    """Returns the canonical names of parameters that no pretrained file holds: adapters, LoRA and new tokens."""
    return {name for name in names if _FRESH.match(name)}
