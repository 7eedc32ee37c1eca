"""What learns in a stage, at which rate, and the optimiser over it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.optim import AdamW

from mmsft.config import GroupConfig, OptimizerConfig
from mmsft.errors import ConfigError, suggest


@dataclass(frozen=True, slots=True)
class Group:
    """Parameters with one learning rate: the pattern that chose them and their canonical names."""

    pattern: str
    config: GroupConfig
    names: tuple[str, ...]


def select(names: Mapping[str, nn.Parameter], train: Mapping[str, GroupConfig]) -> list[Group]:
    """Divides the parameters by the patterns of a stage.

    A pattern is a dotted name or a glob of one, and means all below it: ``towers.image.adapter``, ``decoder.lora``,
    ``towers.*.encoder.*.layers.2[0-3]``. Where several match, the longest wins.

    Raises:
        ConfigError: a pattern decides nothing, or takes LoRA and the weights below it together, or what would learn is
            held in a precision too low for that.
    """
    ranked = sorted(train, key=len, reverse=True)
    chosen: dict[str, list[str]] = {pattern: [] for pattern in train}
    for name in names:
        pattern = next((pattern for pattern in ranked if matches(name, pattern)), None)
        if pattern:
            chosen[pattern].append(name)
    for pattern, members in chosen.items():
        if not members:
            raise ConfigError(_unmatched(pattern, names, ranked))
        _refuse_lora_by_the_way(pattern, members)
        _refuse_low_precision(pattern, members, names)
    return [Group(pattern, train[pattern], tuple(members)) for pattern, members in chosen.items()]


def idle_parts(names: Iterable[str], stages: Sequence[Mapping[str, GroupConfig]]) -> list[str]:
    """Returns what the config adds to the model and no stage trains: LoRA or new tokens that stay as they were drawn.

    Args:
        names: canonical names of the model's parameters.
        stages: each stage's `train`.
    """
    idle = []
    for part in ("decoder.lora", "decoder.new_tokens"):
        members = [name for name in names if matches(name, part)]
        if members and not any(matches(name, pattern) for train in stages for pattern in train for name in members):
            idle.append(part)
    return idle


def matches(name: str, pattern: str) -> bool:
    """Tells whether a pattern names the parameter or something that it is a part of."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, pattern + ".*")


def _refuse_lora_by_the_way(pattern: str, members: Sequence[str]) -> None:
    decoder = [name for name in members if name.startswith("decoder.")]
    lora = [name for name in decoder if name.startswith("decoder.lora.")]
    if lora and any(not name.startswith(("decoder.lora.", "decoder.new_tokens.")) for name in decoder):
        raise ConfigError(
            f"train.{pattern}: takes the decoder's weights and the LoRA on top of them at one rate; name decoder.lora "
            "too, or instead, or leave model.decoder.lora out"
        )


def _refuse_low_precision(pattern: str, members: Sequence[str], names: Mapping[str, nn.Parameter]) -> None:
    for name in members:
        dtype = str(names[name].dtype).removeprefix("torch.")
        if dtype != "float32":
            held = "model." + ("decoder" if name.startswith("decoder.") else ".".join(name.split(".")[:2])) + ".dtype"
            raise ConfigError(
                f"train.{pattern}: {name} can't learn ({held}: {dtype}): steps smaller than its rounding would be "
                "lost; weights that learn are held in float32, and `precision: bf16` computes with them in bf16. A "
                f"decoder in {dtype} stays frozen, under LoRA if it is to change"
            )


def _unmatched(pattern: str, names: Mapping[str, nn.Parameter], ranked: list[str]) -> str:
    matched = [name for name in names if matches(name, pattern)]
    rivals = [other for other in ranked if other != pattern and any(matches(name, other) for name in matched)]
    if rivals:
        return f"train.{pattern}: all that it matches is decided by {', '.join(rivals)}; leave one of them out"
    prefixes = {".".join(name.split(".")[:depth]) for name in names for depth in range(1, 6)}
    tops = sorted({".".join(name.split(".")[:2]) for name in names})
    hint = suggest(pattern, prefixes)
    if "lora" in pattern:
        hint += "; LoRA parameters exist only with model.decoder.lora"
    return f"train.{pattern}: no parameter of the model has this name{hint}; names begin with {', '.join(tops)}"


def freeze(names: Mapping[str, nn.Parameter], groups: list[Group]) -> None:
    """Lets learn what is in a group and nothing else."""
    learning = {name for group in groups for name in group.names}
    for name, parameter in names.items():
        parameter.requires_grad_(name in learning)
        parameter.grad = None


def build(names: Mapping[str, nn.Parameter], groups: list[Group], config: OptimizerConfig) -> AdamW:
    """Builds AdamW; vectors (biases, norms) don't decay."""
    options = []
    for group in groups:
        decay = config.weight_decay if group.config.weight_decay is None else group.config.weight_decay
        parameters = [names[name] for name in group.names]
        for members, weight_decay in (
            ([p for p in parameters if p.ndim >= 2], decay),
            ([p for p in parameters if p.ndim < 2], 0.0),
        ):
            if members:
                options.append(
                    {
                        "params": members,
                        "lr": group.config.lr,
                        "peak": group.config.lr,
                        "weight_decay": weight_decay,
                        "pattern": group.pattern,
                    }
                )
    return AdamW(options, betas=config.betas, eps=config.eps, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> dict[str, float]:
    """Sets every group's rate to `factor` of its peak; returns the rates by pattern."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
    return {group["pattern"]: group["lr"] for group in optimizer.param_groups}
