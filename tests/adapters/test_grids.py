"""Fewer features of a grid, by averages and by squares, and ends between them."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Idefics3Config, InternVLConfig, LlavaNextConfig
from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector
from transformers.models.internvl.modeling_internvl import InternVLModel, InternVLMultiModalProjector
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel

from mmsft.adapters import Linear, Mlp, Mlp2xGelu
from mmsft.adapters.spec import Slots
from mmsft.errors import DataError
from mmsft.modalities.spec import Features
from mmsft.types import Grid

GRIDS = [Grid(1, 1, 1), Grid(1, 4, 4), Grid(1, 3, 5), Grid(5, 4, 6), Grid(7, 1, 1), Grid(1, 1, 17)]
TOLERANCE = 1e-6
"""fp32: the same products, summed in the same order or in another one."""


def same(settings: dict[str, Any] | None = None, d: int = 1) -> Any:
    """A projector that leaves features as they are."""
    module: Any = Linear(**settings or {}).build(d, d * (settings or {}).get("shuffle", 1) ** 2)
    nn.init.eye_(module.layers.weight)
    nn.init.zeros_(module.layers.bias)
    return module


def counted(grid: Grid) -> Tensor:
    """Features that say where they lie: frame, row and column."""
    return torch.cartesian_prod(*(torch.arange(float(side)) for side in (grid.t, grid.h, grid.w))).view(1, -1, 3)


@pytest.mark.parametrize(
    "settings",
    [
        {"time": 2},
        {"time": 100},
        {"stride": 2},
        {"time": 3, "stride": 3},
        {"time": 2, "pool": 3},
        {"end_of": "row"},
        {"end_of": "frame", "stride": 2},
        {"end_of": "medium", "time": 2, "rms": 0.5},
    ],
)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("cls", [Linear, lambda **settings: Mlp(depth=3, **settings)], ids=["linear", "mlp"])
def test_the_module_gives_as_many_tokens_as_the_layout_has_slots(
    cls: Any, settings: dict[str, Any], grid: Grid
) -> None:
    spec = cls(**settings)
    (slots,) = spec.layout(grid)
    tokens = spec.build(3, 8)(Features(counted(grid).expand(2, -1, -1)), grid)
    assert isinstance(slots, Slots)
    assert tokens.shape == (2, slots.count, 8)
    assert tokens.isfinite().all()


def test_frames_are_averaged_in_order_and_the_last_are_divided_by_their_own_number() -> None:
    grid = Grid(5, 1, 2)
    tokens = same({"time": 2}, 3)(Features(counted(grid)), grid)
    assert tokens[0, :, 0].tolist() == [0.5, 0.5, 2.5, 2.5, 4, 4]
    assert tokens[0, :, 2].tolist() == [0, 1] * 3


def test_squares_are_averaged_in_order_and_those_at_the_edges_are_divided_by_their_own_number() -> None:
    grid = Grid(2, 3, 5)
    tokens = same({"stride": 2}, 3)(Features(counted(grid)), grid)
    rows, columns = [0.5] * 3 + [2.0] * 3, [0.5, 2.5, 4.0] * 2
    expected = [[frame, row, column] for frame in (0, 1) for row, column in zip(rows, columns, strict=True)]
    assert tokens[0].tolist() == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_averages_are_made_in_the_dtype_of_the_features(dtype: torch.dtype) -> None:
    grid = Grid(3, 3, 3)
    module = same({"time": 2, "stride": 2}, 3).to(dtype)
    tokens = module(Features(counted(grid).to(dtype).requires_grad_()), grid)
    tokens.sum().backward()
    assert tokens.dtype == dtype


def test_a_square_lies_side_by_side_row_by_row() -> None:
    grid = Grid(2, 2, 4)
    tokens = same({"shuffle": 2}, 3)(Features(counted(grid)), grid)
    assert tokens.shape == (1, 4, 12)
    assert tokens[0, 3].view(4, 3).tolist() == [[1, 0, 2], [1, 0, 3], [1, 1, 2], [1, 1, 3]]


@pytest.mark.parametrize("grid", [Grid(1, 3, 4), Grid(1, 4, 3), Grid(1, 1, 17)], ids=str)
def test_a_grid_that_squares_do_not_cover_is_refused_with_both_sizes(grid: Grid) -> None:
    with pytest.raises(DataError, match=f"shuffle: a frame of {grid.h} by {grid.w} features doesn't divide"):
        Linear(shuffle=2).layout(grid)


@pytest.mark.parametrize(
    ("of", "expected"), [("row", "00e01e00e01e"), ("frame", "0001e0001e"), ("medium", "00010001e")]
)
def test_an_end_stands_behind_each_row_frame_or_medium(of: Any, expected: str) -> None:
    grid = Grid(2, 2, 2)
    values = torch.tensor([0.0, 0, 0, 1] * 2).view(1, 8, 1)
    module = same({"end_of": of})
    nn.init.constant_(module.end, 7.0)
    tokens = module(Features(values), grid)
    assert "".join("e" if token == 7 else str(int(token)) for token in tokens.flatten()) == expected
    tokens.sum().backward()
    assert module.end.grad.item() == expected.count("e")


@torch.no_grad()
@pytest.mark.parametrize("factor", [2, 4])
def test_shuffle_and_a_linear_layer_without_bias_are_idefics3s_connector(factor: int) -> None:
    sizes = {"hidden_size": 6, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    theirs = Idefics3Connector(
        Idefics3Config(vision_config=sizes, text_config={**sizes, "model_type": "llama"}, scale_factor=factor)
    )
    ours: Any = Linear(shuffle=factor, bias=False).build(6, 6)
    ours.layers.weight.copy_(theirs.modality_projection.proj.weight)
    features = torch.randn(3, 64, 6)
    torch.testing.assert_close(ours(Features(features), Grid(1, 8, 8)), theirs(features), atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_shuffle_norm_and_two_layers_are_internvls_projector() -> None:
    sizes: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    theirs = InternVLMultiModalProjector(
        InternVLConfig(vision_config=sizes, text_config={**sizes, "model_type": "llama", "hidden_size": 16})
    )
    nn.init.normal_(theirs.layer_norm.weight)
    nn.init.normal_(theirs.layer_norm.bias)
    ours: Any = Mlp2xGelu(shuffle=2, norm=True).build(8, 16)
    ours.norm.load_state_dict(theirs.layer_norm.state_dict())
    ours.layers[0].load_state_dict(theirs.linear_1.state_dict())
    ours.layers[2].load_state_dict(theirs.linear_2.state_dict())
    features = torch.randn(2, 36, 8)
    shuffled = InternVLModel.pixel_shuffle(SimpleNamespace(), features.view(2, 6, 6, 8)).reshape(2, 9, 32)  # type: ignore[arg-type]
    torch.testing.assert_close(ours(Features(features), Grid(1, 6, 6)), theirs(shuffled), atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_ends_of_rows_and_of_a_medium_are_llava_nexts_newlines() -> None:
    config = LlavaNextConfig(vision_config={"image_size": 4, "patch_size": 2}, image_grid_pinpoints=[[4, 8]])
    model: Any = SimpleNamespace(config=config)
    whole, left, right = torch.randn(3, 4, 1)  # a picture, and its two tiles of 2 × 2 features beside each other
    newline = torch.randn(1)

    def theirs(tiles: list[Tensor]) -> Tensor:
        image = [torch.stack(tiles)]
        packed: list[Tensor]
        packed, _ = LlavaNextModel.pack_image_features(model, image, torch.tensor([[4, 8]]), "full", newline)
        return packed[0]

    rows, medium = same({"end_of": "row"}), same({"end_of": "medium"})
    rows.end.copy_(newline)
    medium.end.copy_(newline)
    beside = torch.cat([left.view(2, 2, 1), right.view(2, 2, 1)], 1).view(1, 8, 1)
    # Nothing is computed: the same values in the same places.
    assert torch.equal(rows(Features(beside), Grid(1, 2, 4))[0], theirs([whole, left, right])[4:])
    assert torch.equal(medium(Features(whole[None]), Grid(1, 2, 2))[0], theirs([whole]))


@torch.no_grad()
def test_an_mlp_of_any_depth_has_gelus_between_its_layers() -> None:
    module: Any = Mlp(depth=3, bias=False).build(5, 8)
    x = torch.randn(2, 4, 5)
    first, _, second, _, third = module.layers
    by_hand = F.gelu(F.gelu(x @ first.weight.T) @ second.weight.T) @ third.weight.T
    torch.testing.assert_close(module(Features(x), Grid(1, 2, 2)), by_hand, atol=TOLERANCE, rtol=0)
