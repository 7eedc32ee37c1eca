"""LoRA on the decoder's linear layers, by peft; towers are out of its reach."""

import copy
from collections.abc import Callable
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
        rounded = torch.is_autocast_enabled(x.device.type)  # as it is wherever the layer is held in 16 bits
        if self.disable_adapters or self.merged or self.lora_variant or not rounded:
            plain: Tensor = super().forward(x, *args, **kwargs)
            return plain
        (name,) = self.active_adapters
        dropout = self.lora_dropout[name]
        x_TI = x.flatten(0, -2)
        whole: Tensor = _Sum.apply(
            x_TI,
            None if isinstance(dropout, nn.Identity) else dropout(x_TI),
            base.weight,
            base.bias,
            self.lora_A[name].weight,
            self.lora_B[name].weight,
            self.scaling[name],
        )
        return whole.view(*x.shape[:-1], -1)


class _Sum(torch.autograd.Function):
    """x Wᵀ + b + s · d Aᵀ Bᵀ in 16 bits, d being x after dropout.

    Each input is rounded once, and kept once for the backward pass; autograd would do so at each of its uses.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_TI: Tensor,
        d_TI: Tensor | None,
        W_OI: Tensor,
        b_O: Tensor | None,
        A_RI: Tensor,
        B_OR: Tensor,
        s: float,
    ) -> Tensor:
        """Computes the sum [T, O] in autocast's type."""
        dtype = torch.get_autocast_dtype(x_TI.device.type)
        x = x_TI.to(dtype)
        d = None if d_TI is None else d_TI.to(dtype)
        W, A, B = W_OI.to(dtype), A_RI.to(dtype), B_OR.to(dtype)
        h_TR = (x if d is None else d).mm(A.t()).mul_(s)  # scaled where it is narrow
        y_TO = h_TR.mm(B.t()) if b_O is None else torch.addmm(b_O.to(dtype), h_TR, B.t())
        y_TO.addmm_(x, W.t())
        ctx.save_for_backward(x, d, W, A, B, h_TR)
        ctx.s, ctx.dtypes = s, [None if it is None else it.dtype for it in (x_TI, d_TI, W_OI, b_O, A_RI, B_OR)]
        return y_TO

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Computes the gradients that are asked for, each in its input's dtype."""
        (g_TO,) = grads
        x, d, W, A, B, h_TR = ctx.saved_tensors
        g_TR = g_TO.mm(B).mul_(ctx.s)
        found: tuple[Callable[[], Tensor], ...] = (
            lambda: g_TO.mm(W) if d is not None else g_TR.mm(A).addmm_(g_TO, W),
            lambda: g_TR.mm(A),
            lambda: g_TO.t().mm(x),
            lambda: g_TO.sum(0),
            lambda: g_TR.t().mm(x if d is None else d),
            lambda: g_TO.t().mm(h_TR),
        )
        wanted = zip(found, ctx.needs_input_grad, ctx.dtypes, strict=False)
        return *(find().to(dtype) if asked else None for find, asked, dtype in wanted), None


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
def skip_idle_lora(decoder: PreTrainedModel, adds: Callable[[Tensor], bool] = lambda B: bool(B.any())) -> None:
    """Leaves the matrices out of the computation where they neither learn nor add anything: frozen, with a B of zero.

    The result is the same, bit for bit. For DoRA, which rescales by a quotient that rounds, it would not be: it stays.
    """
    for layer in decoder.modules():
        if not isinstance(layer, LoraLayer):
            continue
        own = [parameter for name, parameter in layer.named_parameters() if "lora_" in name]
        learns = [parameter.requires_grad for parameter in own]
        added = [cast(Tensor, matrix.weight) for matrix in layer.lora_B.values()]
        idle = not any(learns) and not layer.lora_magnitude_vector and not any(map(adds, added))
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
