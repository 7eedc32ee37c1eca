from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import CLIPVisionModel, LlavaNextConfig, LlavaNextForConditionalGeneration, LlavaNextImageProcessor

from mmsft.adapters import Mlp2xGelu
from mmsft.adapters.spec import layout_of, slots_of
from mmsft.config import Spec
from mmsft.modalities import Clip, Tiles
from mmsft.model.tower import Tower
from mmsft.types import MediaGroup
from tests.model.tiny import clip_config, llama_config

TOLERANCE = 1e-5
"""fp32: the same products; features are picked before the projector here, behind it there."""
SIDE = 8
GRIDS = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
SIZES = [(8, 8), (16, 16), (17, 9), (9, 17), (30, 10), (10, 30), (100, 61), (61, 100), (640, 480), (40, 100), (4, 4)]


def noise(folder: Path, width: int, height: int) -> Path:
    rng = torch.Generator().manual_seed(width)
    pixels = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=rng)
    file = folder / f"{width}x{height}.png"
    Image.fromarray(pixels.numpy()).save(file)
    return file


def their_processor() -> Any:
    return LlavaNextImageProcessor(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_grid_pinpoints=[[rows * SIDE, columns * SIDE] for rows, columns in GRIDS],
    )


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Tiles, Tower, Any]:
    """Returns our tower and transformers' model with the same weights, by a map of names that is written out here."""
    torch.manual_seed(0)
    config = LlavaNextConfig(
        vision_config=clip_config(),
        text_config=llama_config(),
        image_token_index=49,
        image_grid_pinpoints=their_processor().image_grid_pinpoints,
    )
    theirs: Any = LlavaNextForConditionalGeneration(config).eval().model
    vision = CLIPVisionModel(clip_config())
    vision.load_state_dict(theirs.vision_tower.state_dict())
    vision.save_pretrained(tmp_path / "clip")
    tiles = Tiles(Spec("clip", Clip(str(tmp_path / "clip"), aspect="stretch")))
    ours = Tower(tiles, Mlp2xGelu(end_of="row"), llama_config().hidden_size).eval()
    projector: Any = ours.adapter
    projector.layers[0].load_state_dict(theirs.multi_modal_projector.linear_1.state_dict())
    projector.layers[2].load_state_dict(theirs.multi_modal_projector.linear_2.state_dict())
    projector.end.data = theirs.image_newline.data
    return tiles, ours, theirs


@pytest.mark.parametrize(("width", "height"), SIZES)
@torch.no_grad()
def test_tokens_of_a_file_equal_those_of_llava_next(
    tmp_path: Path, pair: tuple[Tiles, Tower, Any], width: int, height: int
) -> None:
    tiles, ours, theirs = pair
    file = noise(tmp_path, width, height)
    loaded, grid = tiles.load(file, {}), tiles.probe(file, {})
    inputs = their_processor()([Image.open(file)], return_tensors="pt")
    torch.testing.assert_close(loaded["pixels"], inputs["pixel_values"][0], atol=TOLERANCE, rtol=TOLERANCE)
    [expected] = theirs.get_image_features(inputs["pixel_values"], inputs["image_sizes"]).pooler_output
    found = ours(MediaGroup({name: value[None] for name, value in loaded.items()}, grid, ()))[0]
    assert len(found) == slots_of(layout_of(ours.adapter_spec, grid))
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (1, 1)])
def test_a_strip_keeps_a_row_of_its_tiles(
    tmp_path: Path, pair: tuple[Tiles, Tower, Any], size: tuple[int, int]
) -> None:
    # transformers keeps nothing of tiles in which the picture is less than half a feature wide.
    tiles, ours, _ = pair
    file = noise(tmp_path, *size)
    loaded, grid = tiles.load(file, {}), tiles.probe(file, {})
    assert min(grid.parts[1].h, grid.parts[1].w) >= 1
    assert len(loaded["keep"]) == grid.count
    assert ours(MediaGroup({name: value[None] for name, value in loaded.items()}, grid, ())).isfinite().all()
