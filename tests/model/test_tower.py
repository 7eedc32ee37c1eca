"""In which precision a tower's encoder is held, and what follows from it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mmsft.adapters import Linear, Mlp2xGelu, QFormer, adapter_spec
from mmsft.config import GroupConfig
from mmsft.errors import ConfigError, DataError
from mmsft.modalities import Clip
from mmsft.model.names import named_parameters
from mmsft.model.tower import Tower
from mmsft.train.optim import select
from mmsft.types import Grid, Media, MediaGroup
from tests.model.blip import bert
from tests.model.tiny import clip_folder, llama, model_with_tower


def towers(folder: Path) -> tuple[Tower, Tower]:
    """One tower held in float32, and the same in bfloat16."""
    modality = Clip(str(clip_folder(folder / "clip")))
    full, half = Tower(modality, Mlp2xGelu(), 16).eval(), Tower(modality, Mlp2xGelu(), 16, torch.bfloat16).eval()
    half.adapter.load_state_dict(full.adapter.state_dict())
    return full, half


def group() -> MediaGroup:
    pixels = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return MediaGroup({"pixels": pixels}, Grid(1, 2, 2), tuple(Media("image", name) for name in "abc"))


@torch.no_grad()
def test_an_encoder_held_in_bf16_computes_what_autocast_computes_bit_for_bit(tmp_path: Path) -> None:
    full, half = towers(tmp_path)
    with torch.autocast("cpu", torch.bfloat16):
        expected, got = (tower(group()) for tower in (full, half))
    assert torch.equal(got, expected)
    assert sum(parameter.dtype == torch.bfloat16 for parameter in half.encoder.parameters()) > 10


@torch.no_grad()
def test_without_autocast_its_features_are_rounded_and_its_adapters_tokens_are_fp32(tmp_path: Path) -> None:
    full, half = towers(tmp_path)
    expected, got = (tower(group()) for tower in (full, half))
    assert got.dtype == torch.float32
    assert 0 < float((got - expected).norm() / expected.norm()) < 2e-2  # bf16 has 8 bits


def test_an_encoder_held_in_bf16_can_not_learn_and_the_setting_is_named(tmp_path: Path) -> None:
    model = model_with_tower(Clip(str(clip_folder(tmp_path / "clip"))), decoder=llama())
    _, model.towers["image"] = towers(tmp_path)
    with pytest.raises(ConfigError, match=r"can't learn \(model\.towers\.image\.dtype: bfloat16\)"):
        select(named_parameters(model), {"towers.image.encoder": GroupConfig(lr=1e-4)})
    select(named_parameters(model), {"towers.image.adapter": GroupConfig(lr=1e-4)})


@pytest.mark.parametrize("spec", [Linear(shuffle=2, end_of="row"), Linear(time=3, stride=2)])
def test_without_a_medium_an_adapter_of_squares_has_a_gradient_of_zero(tmp_path: Path, spec: Linear) -> None:
    tower = Tower(Clip(str(clip_folder(tmp_path / "clip"))), spec, 16)
    zero = tower.untouched()
    zero.backward()
    assert zero == 0
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in tower.parameters())


def test_without_a_medium_an_adapter_that_reads_what_is_asked_has_a_gradient_of_zero(tmp_path: Path) -> None:
    sizes = {"queries": 2, "layers": 2, "heads": 2, "width": 8, "inner": 8}
    spec = QFormer(**sizes, instruction=8, tokenizer=str(bert(tmp_path / "bert")))  # type: ignore[arg-type]
    tower = Tower(Clip(str(clip_folder(tmp_path / "clip"))), spec, 16)
    tower.untouched().backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in tower.parameters())


def test_an_adapter_that_takes_no_blank_medium_says_why(tmp_path: Path) -> None:
    tower = Tower(Clip(str(clip_folder(tmp_path / "clip"))), Linear(shuffle=3), 16)  # of 2 × 2 features
    with pytest.raises(DataError, match="shuffle: a frame of 1 by 4 features doesn't divide into squares of 3 by 3"):
        tower.untouched()


def test_what_is_frozen_of_an_adapter_drops_nothing_out_and_passes_gradients_on(tmp_path: Path) -> None:
    sizes = {"queries": 2, "layers": 2, "heads": 2, "width": 8, "inner": 8, "dropout": 0.5}
    spec = adapter_spec({"kind": "video_qformer", **sizes, "frame": sizes}).value
    tower = Tower(Clip(str(clip_folder(tmp_path / "clip"))), spec, 16).train()
    adapter: Any = tower.adapter
    for frozen, modes in ((adapter.frame, (False, True)), (adapter, (False, False))):
        frozen.requires_grad_(False)
        tokens = tower(group())
        assert (adapter.frame.training, adapter.video.training) == modes
        assert torch.equal(tokens, tower(group())) is not any(modes)
    tokens.sum().backward()
    assert all(parameter.grad is not None for parameter in tower.encoder.parameters())
    adapter.requires_grad_(True)
    tower(group())
    assert adapter.frame.training
