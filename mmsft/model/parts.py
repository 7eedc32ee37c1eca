"""Which parts a model has, how large they are, and what of them learns."""

import re
from dataclasses import dataclass

from torch import nn

from mmsft.model.names import named_parameters

_PART = re.compile(r"decoder\.(?:lora|new_tokens)|decoder|towers\.[^.]+\.(?:encoder|adapter)")


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a model and its parameters' number, in all and learning."""

    name: str
    total: int
    learning: int

    @property
    def frozen(self) -> int:
        """Parameters that stay as they are."""
        return self.total - self.learning


def parts(model: nn.Module) -> list[Part]:
    """Returns the parts of a root module in order; what learns is what asks for gradients."""
    totals: dict[str, list[int]] = {}
    for name, parameter in named_parameters(model).items():
        match = _PART.match(name)
        counts = totals.setdefault(match[0] if match else name, [0, 0])
        counts[0] += parameter.numel()
        counts[1] += parameter.numel() * parameter.requires_grad
    return [Part(name, total, learning) for name, (total, learning) in totals.items()]
