"""What learns in a stage, at which rate, and the optimiser over it."""

from collections.abc import Mapping
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
        ConfigError: a pattern decides nothing.
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
    return [Group(pattern, train[pattern], tuple(members)) for pattern, members in chosen.items()]


def matches(name: str, pattern: str) -> bool:
    """Tells whether a pattern names the parameter or something that it is a part of."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, pattern + ".*")


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
