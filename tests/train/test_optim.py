from typing import Any

import pytest
import torch
from torch import nn

from mmsft.config import GroupConfig, OptimizerConfig
from mmsft.errors import ConfigError
from mmsft.train.optim import build, freeze, idle_parts, select, set_rate

NAMES = (
    "decoder.model.layers.0.mlp.weight",
    "decoder.model.layers.0.norm.weight",
    "decoder.model.layers.1.mlp.weight",
    "decoder.lora.model.layers.0.mlp.A",
    "towers.image.encoder.layers.22.weight",
    "towers.image.encoder.layers.3.weight",
    "towers.image.adapter.first.weight",
    "towers.image.adapter.first.bias",
)


@pytest.fixture
def names() -> dict[str, nn.Parameter]:
    return {
        name: nn.Parameter(torch.ones(2) if "bias" in name or "norm" in name else torch.ones(2, 2)) for name in NAMES
    }


def rates(**patterns: float) -> dict[str, GroupConfig]:
    return {pattern.replace("__", "."): GroupConfig(lr=lr) for pattern, lr in patterns.items()}


def test_a_pattern_means_all_below_it_and_the_longest_wins(names: dict[str, nn.Parameter]) -> None:
    groups = select(names, rates(decoder=1e-5, decoder__lora=1e-4, towers__image__adapter=1e-3))
    assert {group.pattern: group.names for group in groups} == {
        "decoder": NAMES[:3],
        "decoder.lora": NAMES[3:4],
        "towers.image.adapter": NAMES[6:],
    }


@pytest.mark.parametrize("pattern", ["towers.*.encoder.layers.2[0-3]", "towers.image.encoder.layers.22.weight"])
def test_a_pattern_may_be_a_glob_or_a_whole_name(names: dict[str, nn.Parameter], pattern: str) -> None:
    [group] = select(names, {pattern: GroupConfig(lr=1)})
    assert group.names == (NAMES[4],)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"towers.imgae.adapter": 1}, "no parameter of the model has this name.*did you mean 'towers.image.adapter'"),
        ({"decoder.mod": 1}, "no parameter of the model has this name.*did you mean 'decoder.model'"),
        ({"towers.image.*": 1, "towers.image": 1}, "train.towers.image: all that it matches is decided by"),
        ({"decoder.model.lora": 1}, "LoRA parameters exist only with model.decoder.lora"),
        ({"decoder": 1}, r"train.decoder: takes the decoder's weights and the LoRA.*name decoder\.lora too.*leave"),
        ({"d*": 1}, "and the LoRA on top of them at one rate"),
    ],
)
def test_a_pattern_that_decides_nothing_is_refused(
    names: dict[str, nn.Parameter], train: dict[str, float], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        select(names, {pattern: GroupConfig(lr=lr) for pattern, lr in train.items()})


def test_what_is_in_no_group_is_frozen_and_not_optimised(names: dict[str, nn.Parameter]) -> None:
    groups = select(names, rates(towers__image__adapter=1e-3))
    freeze(names, groups)
    optimizer = build(names, groups, OptimizerConfig())
    optimised = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in names.items():
        assert parameter.requires_grad == (id(parameter) in optimised) == name.startswith("towers.image.adapter")


def test_matrices_decay_and_vectors_do_not(names: dict[str, nn.Parameter]) -> None:
    train = rates(decoder__model=1e-2, decoder__lora=1e-2) | {
        "towers.image.adapter": GroupConfig(lr=1e-2, weight_decay=0.3)
    }
    optimizer = build(names, select(names, train), OptimizerConfig(weight_decay=0.1))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    found = {name: decay.get(id(parameter)) for name, parameter in names.items()}
    assert found == dict(zip(NAMES, [0.1, 0, 0.1, 0.1, None, None, 0.3, 0], strict=True))


def test_every_group_keeps_its_own_rate_over_the_schedule(names: dict[str, nn.Parameter]) -> None:
    groups = select(names, rates(decoder__model=1e-5, towers=1e-3))
    optimizer = build(names, groups, OptimizerConfig(betas=(0.8, 0.9), eps=1e-6))
    for factor in (0.5, 0.25):
        assert set_rate(optimizer, factor) == {"decoder.model": 1e-5 * factor, "towers": 1e-3 * factor}
    settings: dict[str, Any] = optimizer.param_groups[0]
    assert (settings["betas"], settings["eps"]) == ((0.8, 0.9), 1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_is_held_in_low_precision_does_not_learn(names: dict[str, nn.Parameter], dtype: torch.dtype) -> None:
    for name in NAMES[:3]:
        names[name].data = names[name].data.to(dtype)
    with pytest.raises(ConfigError, match=r"train\.decoder\.model: .*model\.decoder\.dtype: \w*float16.*in float32"):
        select(names, rates(decoder__model=1e-5))
    select(names, rates(decoder__lora=1e-4, towers__image__adapter=1e-3))


def test_a_part_that_no_stage_trains_is_found() -> None:
    names = ["decoder.model.norm.weight", "decoder.lora.model.q_proj.A", "decoder.new_tokens.input"]
    rate = GroupConfig(lr=1.0)
    assert idle_parts(names, [{"decoder.lora": rate}, {"decoder.new_tokens": rate}]) == []
    assert idle_parts(names[:1], [{"decoder": rate}]) == []
    assert idle_parts(names, [{"decoder.lora": rate}]) == ["decoder.new_tokens"]
