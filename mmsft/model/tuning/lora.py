"""LoRA on the decoder's linear layers, by peft; towers are out of its reach."""

import copy
from fnmatch import fnmatchcase
from typing import Any, cast

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import inject_adapter_in_model
from peft.tuners.lora import Linear as PeftLinear
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from mmsft.config import LoraConfig
from mmsft.errors import ConfigError, suggest

ALL = "all-linear"


class _Linear(PeftLinear):
    """A linear layer whose LoRA is added inside its sum, so that bf16 rounds both together.

    Added to an output that is rounded already, all that is less than half of its last bit would be lost: most of what
    the first steps learn.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        base = cast(nn.Linear, self.get_base_layer())
        autocast = torch.is_autocast_enabled(x.device.type)
        rounded = autocast or base.weight.dtype != torch.float32
        if self.disable_adapters or self.merged or self.lora_variant or not rounded:
            plain: Tensor = super().forward(x, *args, **kwargs)
            return plain
        (name,) = self.active_adapters
        A, B = cast(nn.Linear, self.lora_A[name]), self.lora_B[name]
        dropped = self.lora_dropout[name](self._cast_input_dtype(x, A.weight.dtype))
        added: Tensor = B(A(dropped) * self.scaling[name])  # scaled where it is narrow
        if base.bias is not None:
            added = added + base.bias
        if not autocast:  # which rounds all three itself
            added = added.to(x.dtype)
        whole = torch.addmm(added.flatten(0, -2), x.flatten(0, -2), base.weight.t())
        return whole.view(*x.shape[:-1], -1)


def add_lora(decoder: PreTrainedModel, config: LoraConfig) -> None:
    """Puts fresh LoRA matrices beside the layers that the config's patterns name; B is zero, so nothing changes yet.

    Raises:
        ConfigError: a pattern names no linear layer.
    """
    names = targets(decoder, config.targets)
    conv = isinstance(decoder.get_submodule(names[0]), Conv1D)
    settings = PeftLoraConfig(
        r=config.r,
        lora_alpha=config.alpha,  # type: ignore[arg-type] # peft computes with it as with any number
        lora_dropout=config.dropout,
        target_modules=names,
        use_rslora=config.rslora,
        use_dora=config.dora,
        fan_in_fan_out=conv,
    )
    settings._register_custom_module({nn.Linear: _Linear})
    inject_adapter_in_model(settings, decoder)
    for name, parameter in decoder.named_parameters():
        if ".lora_" in name:
            # Beside weights held in bf16 the small updates of A and B would be rounded away.
            parameter.data = parameter.data.float()


@torch.no_grad()
def skip_idle_lora(decoder: PreTrainedModel) -> None:
    """Leaves the matrices out of the computation where they neither learn nor add anything: frozen, with a B of zero.

    The result is the same, bit for bit. For DoRA, which rescales by a quotient that rounds, it would not be: it stays.
    """
    for layer in decoder.modules():
        if not isinstance(layer, LoraLayer):
            continue
        own = [parameter for name, parameter in layer.named_parameters() if "lora_" in name]
        learns = [parameter.requires_grad for parameter in own]
        added = [cast(Tensor, matrix.weight) for matrix in layer.lora_B.values()]
        idle = not any(learns) and not layer.lora_magnitude_vector and not any(bool(B.any()) for B in added)
        # peft's switch also decides what learns, which is not its to say.
        layer.enable_adapters(not idle)
        for parameter, learning in zip(own, learns, strict=True):
            parameter.requires_grad_(learning)


def targets(decoder: PreTrainedModel, patterns: tuple[str, ...]) -> list[str]:
    """Returns the full names of the linear layers that the patterns name, in the model's order.

    A pattern is the last part of a name (``q_proj``), a glob of the whole name (``*.mlp.*``), or ``all-linear``: all
    but the head.
    """
    head = decoder.get_output_embeddings()
    linear = [
        name
        for name, module in decoder.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and module is not head
        and module is not getattr(head, "base_layer", None)
    ]
    chosen: set[str] = set()
    for pattern in patterns:
        matched = [name for name in linear if _matches(name, pattern)]
        if not matched:
            last = sorted({name.rpartition(".")[2] for name in linear})
            raise ConfigError(
                f"decoder.lora.targets: {pattern!r} names no linear layer of {type(decoder).__name__}"
                f"{suggest(pattern, last)}; its layers end in {', '.join(last)}"
            )
        chosen.update(matched)
    return [name for name in linear if name in chosen]


def _matches(name: str, pattern: str) -> bool:
    return pattern in {ALL, name} or name.endswith(f".{pattern}") or fnmatchcase(name, pattern)


@torch.no_grad()
def merged_weight(layer: LoraLayer) -> Tensor:
    """Returns the weight of a layer with its LoRA added, as the layer stores it; the layer stays as it is."""
    whole = copy.deepcopy(layer)
    base = cast(nn.Linear, whole.get_base_layer())
    whole.merge(safe_merge=not base.weight.is_meta)  # which looks at values
    return base.weight.detach()
