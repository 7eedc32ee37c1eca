from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from mmsft.adapters import Linear, Mlp2xGelu, adapter_spec
from mmsft.adapters.spec import Adapter, Layout, Slots
from mmsft.modalities.spec import Features
from mmsft.types import Grid

GRID = Grid(1, 4, 6)


def run(spec: Linear, grid: Grid = GRID) -> torch.Tensor:
    torch.manual_seed(0)
    tokens: torch.Tensor = spec.build(5, 8)(Features(torch.randn(2, grid.count, 5)), grid)
    return tokens


@pytest.mark.parametrize("cls", [Linear, Mlp2xGelu])
@pytest.mark.parametrize("options", [{}, {"pool": 2}, {"pool": 3, "norm": True}, {"rms": 0.1}])
@pytest.mark.parametrize("grid", [GRID, Grid(3, 4, 4)])
def test_the_module_gives_as_many_tokens_as_the_layout_has_slots(cls: Any, options: dict[str, Any], grid: Grid) -> None:
    spec = cls(**options)
    (slots,) = spec.layout(grid)
    assert isinstance(slots, Slots)
    assert run(spec, grid).shape == (2, slots.count, 8)


def test_mlp2x_gelu_is_two_layers_with_the_exact_gelu() -> None:
    torch.manual_seed(0)
    module: Any = Mlp2xGelu().build(5, 8)
    x = torch.randn(2, 24, 5)
    by_hand = nn.functional.gelu(x @ module.layers[0].weight.T + module.layers[0].bias, approximate="none")
    expected = by_hand @ module.layers[2].weight.T + module.layers[2].bias
    # fp32: the same sums.
    torch.testing.assert_close(module(Features(x), GRID), expected, atol=1e-6, rtol=1e-6)


def test_pooling_averages_neighbours_and_keeps_their_order() -> None:
    module: Any = Linear(pool=2).build(1, 1)
    nn.init.ones_(module.layers.weight)
    nn.init.zeros_(module.layers.bias)
    values = torch.tensor([[0.0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 5]]).reshape(1, 16, 1)
    assert module(Features(values), Grid(1, 4, 4)).flatten().tolist() == [0, 1, 2, 3.5]


def test_pooling_makes_no_more_features_than_there_are() -> None:
    grid = Grid(2, 3, 8)
    (slots,) = Linear(pool=5).layout(grid)
    assert isinstance(slots, Slots)
    assert slots.count == 2 * 3 * 5
    assert run(Linear(pool=5), grid).shape == (2, slots.count, 8)
    torch.testing.assert_close(run(Linear(pool=8), Grid(1, 4, 6)), run(Linear(), Grid(1, 4, 6)))


def test_features_are_averaged_over_time_and_space_as_torch_does_it_in_three_dimensions() -> None:
    grid, to = Grid(5, 6, 4), Grid(2, 3, 4)
    values = torch.randn(2, grid.count, 3)
    cells = values.mT.unflatten(2, (5, 6, 4))
    expected = nn.functional.adaptive_avg_pool3d(cells, (2, 3, 4)).flatten(2).mT
    # fp32 sums in another order
    torch.testing.assert_close(Features(values).averaged(grid, to).values, expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(Features(values).averaged(grid, grid).values, values)


def test_frames_are_pooled_apart() -> None:
    module: Any = Linear(pool=1).build(1, 1)
    nn.init.ones_(module.layers.weight)
    nn.init.zeros_(module.layers.bias)
    values = torch.tensor([1.0, 1, 1, 1, 5, 5, 5, 5]).reshape(1, 8, 1)
    assert module(Features(values), Grid(2, 2, 2)).flatten().tolist() == [1, 5]


def test_rms_scales_every_token_to_it_at_first_and_its_gain_learns() -> None:
    module: Any = Mlp2xGelu(rms=0.136).build(5, 8)
    tokens = module(Features(torch.randn(2, 24, 5) * 100), GRID)
    # fp32, and the small constant under the root.
    torch.testing.assert_close(tokens.pow(2).mean(-1).sqrt(), torch.full((2, 24), 0.136), atol=1e-4, rtol=0)
    tokens.sum().backward()
    assert module.gain.grad.abs().sum() > 0


def test_without_rms_there_is_nothing_but_the_layers() -> None:
    assert [name for name, _ in Linear().build(5, 8).named_parameters()] == ["layers.weight", "layers.bias"]


@dataclass(frozen=True)
class WithoutModule(Adapter):
    """What a user may forget to finish."""

    def layout(self, grid: Grid) -> Layout:
        return (Slots(grid.count),)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "mlp2x_gelu", "pool": 0}, "pool: at least 1, got 0"),
        ({"kind": "linear", "pool": 2, "stride": 2}, "pool and stride each make fewer features of a frame; take one"),
        ({"kind": "linear", "time": 0, "rms": 0.0}, "time: at least 1, got 0; rms: must be greater than 0, got 0.0"),
        ({"kind": "linear", "end_of": "column"}, "end_of: .*'row', 'frame' or 'medium', got 'column'"),
        ({"kind": "mlp"}, "'depth' is required"),
        ({"kind": "mlp", "depth": 0, "shuffle": -1}, "shuffle: at least 1, got -1; depth: at least 1, got 0"),
        ({"kind": "linear", "rms": -1.0}, "rms: must be greater than 0, got -1.0"),
        ({"kind": "linear", "poool": 2}, r"unknown key 'poool' \(did you mean 'pool'\?\)"),
        ({"kind": "linear", "norm": "maybe"}, "norm: .*got 'maybe'"),
        ({"kind": "mlp3"}, r"unknown adapter kind 'mlp3'.*known: linear, mlp2x_gelu, mlp"),
        ({}, "the adapter is chosen by its `kind`"),
        ({"kind": "mmsft.types:Grd"}, r"mmsft.types has no 'Grd' \(did you mean 'Grid'\?\)"),
        ({"kind": "mmsft.no_such:X"}, "mmsft.no_such can't be imported"),
        ({"kind": f"{__name__}:WithoutModule"}, "WithoutModule lacks build; write what mmsft.Adapter asks for"),
        ({"kind": "pathlib:Path"}, "make Path a frozen dataclass"),
        ({"kind": "mmsft.modalities:Clip"}, "Clip isn't one; subclass mmsft.Adapter"),
    ],
)
def test_wrong_settings_are_explained(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adapter_spec(settings)


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(ValueError, match=r"unknown key 'x'.*pool: .*norm: "):
        adapter_spec({"kind": "linear", "x": 1, "pool": "a", "norm": 7})


def test_a_users_class_is_a_kind() -> None:
    spec = adapter_spec({"kind": "mmsft.adapters.mlp:Linear", "pool": 2})
    assert (spec.kind, spec.value) == ("mmsft.adapters.mlp:Linear", Linear(pool=2))
