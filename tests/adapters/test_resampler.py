"""The Perceiver resampler: equal to transformers' Idefics', with what OpenFlamingo and Otter do otherwise."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import IdeficsConfig
from transformers.models.idefics.perceiver import IdeficsPerceiverResampler

from mmsft.adapters import Resampler, adapter_spec
from mmsft.adapters.resampler import PerceiverResampler
from mmsft.adapters.spec import Slots
from mmsft.errors import DataError
from mmsft.modalities.spec import Features
from mmsft.types import Grid

TOLERANCE = 2e-6
"""fp32: torch's attention sums in another order than transformers' products; values are of unit scale (LayerNorm)."""
SMALL: dict[str, Any] = {"latents": 6, "depth": 3, "heads": 2, "head_width": 4}


def pair(qk_norm: bool = False, activation: str = "relu") -> tuple[PerceiverResampler, Any]:
    """Ours and transformers' with the same random weights, by a map of names that is written out here."""
    config = IdeficsConfig(
        vision_config={"embed_dim": 10}, perceiver_config={"qk_layer_norms_perceiver": qk_norm, "use_resampler": True}
    )
    theirs: Any = IdeficsPerceiverResampler(config, 10, 3, 2, 4, 6).eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.5)
    ours = PerceiverResampler(Resampler(**SMALL, qk_norm=qk_norm, activation=activation), 10)  # type: ignore[arg-type]
    names = {"latents": "latents", "layer_norm": "norm"}
    attention = {
        "context_layer_norm": "norm_features",
        "latents_layer_norm": "norm_latents",
        "q_layer_norm": "norm_queries",
        "k_layer_norm": "norm_keys",
        "q_proj": "queries",
        "k_proj": "keys",
        "v_proj": "values",
        "output_proj": "out",
    }
    feed_forward = {"ln": "0", "fc": "1", "c_proj": "3"}
    for number in range(3):
        names |= {f"blocks.{number}.0.{one}": f"blocks.{number}.{other}" for one, other in attention.items()}
        names |= {
            f"blocks.{number}.1.{one}": f"blocks.{number}.feed_forward.{other}" for one, other in feed_forward.items()
        }
    state: dict[str, Tensor] = {}
    for name, tensor in theirs.state_dict().items():
        module, dot, kind = name.rpartition(".")
        state[f"{names[module]}.{kind}" if dot else names[name]] = tensor
    ours.load_state_dict(state)
    return ours, theirs


@torch.no_grad()
@pytest.mark.parametrize("qk_norm", [False, True])
def test_with_relu_it_is_idefics_resampler(qk_norm: bool) -> None:
    ours, theirs = pair(qk_norm)
    features = torch.randn(3, 11, 10)
    torch.testing.assert_close(ours(features), theirs(features), atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_with_gelu_as_in_openflamingo_it_is_another_one() -> None:
    ours, theirs = pair(activation="gelu")
    features = torch.randn(3, 11, 10)
    for _, feed_forward in theirs.blocks:
        feed_forward.act = nn.GELU()
    torch.testing.assert_close(ours(features), theirs(features), atol=TOLERANCE, rtol=0)
    assert (ours(features) - pair(activation="relu")[0](features)).abs().max() > 0.1


@pytest.mark.parametrize("grid", [Grid(1, 1, 1), Grid(1, 3, 5), Grid(4, 2, 2)], ids=str)
@pytest.mark.parametrize("settings", [{}, {"frames": 4}, {"rms": 0.1, "qk_norm": True}])
def test_any_number_of_features_becomes_as_many_tokens_as_there_are_slots(grid: Grid, settings: dict[str, Any]) -> None:
    spec = Resampler(**SMALL, **settings)
    tokens = spec.build(10, 8)(Features(torch.randn(2, grid.count, 10)), grid)
    assert spec.layout(grid) == (Slots(6),)
    assert tokens.shape == (2, 6, 8)


@torch.no_grad()
@pytest.mark.parametrize("frames", [None, 5])
def test_the_order_of_frames_counts_if_they_have_positions(frames: int | None) -> None:
    grid = Grid(3, 1, 2)
    module: Any = Resampler(**SMALL, frames=frames).build(10, 8)
    features = torch.randn(1, 6, 10)
    swapped = features[:, [2, 3, 0, 1, 4, 5]]
    apart = (module(Features(features), grid) - module(Features(swapped), grid)).abs().max()
    assert (apart > 1e-3) == (frames is not None)
    if frames is not None:
        # Each frame's features, all of them, have its own position.
        by_hand = torch.cat([features[:, 2 * t : 2 * t + 2] + module.positions.weight[t] for t in range(3)], dim=1)
        assert torch.equal(module.positions(features, grid), by_hand)


def test_more_frames_than_positions_are_refused_with_both_numbers() -> None:
    with pytest.raises(DataError, match="it has 9 frames, and the adapter positions for 8; read fewer frames of it"):
        Resampler(frames=8).layout(Grid(9, 1, 1))


@torch.no_grad()
def test_it_computes_under_autocast_what_it_computes_in_fp32() -> None:
    module = Resampler(**SMALL, qk_norm=True, frames=2).build(10, 8)
    features = Features(torch.randn(2, 8, 10))
    exact = module(features, Grid(2, 2, 2))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = module(Features(features.values.bfloat16()), Grid(2, 2, 2))
    # bf16 keeps 8 bits: under 1 % a product, through three blocks.
    assert (rounded.float() - exact).norm() / exact.norm() < 3e-2


def test_all_that_learns_has_a_gradient() -> None:
    module = Resampler(**SMALL, qk_norm=True, frames=2, rms=1.0).build(10, 8)
    module(Features(torch.randn(2, 8, 10)), Grid(2, 2, 2)).square().sum().backward()
    assert [name for name, parameter in module.named_parameters() if parameter.grad is None] == []


def test_wrong_settings_are_told_at_once() -> None:
    with pytest.raises(ValueError, match=r"resampler: latents: at least 1, got 0; depth: .*frames: .*rms: must be"):
        adapter_spec({"kind": "resampler", "latents": 0, "depth": -1, "frames": 0, "rms": 0})
    with pytest.raises(ValueError, match=r"activation: .*'gelu' or 'relu', got 'silu'"):
        adapter_spec({"kind": "resampler", "activation": "silu"})
