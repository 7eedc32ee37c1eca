from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mmsft.config import Spec
from mmsft.errors import ConfigError
from mmsft.modalities import Clip, Several, Tiles, modality_spec
from mmsft.run import load_run
from mmsft.run.doctor import doctor
from mmsft.types import Grid
from tests.makers import Lab, finish, lines, row, write_rows
from tests.modalities.test_towers import siglip_folder
from tests.model.tiny import clip_folder

SIZES = {"wide": (20, 8), "tall": (8, 20), "square": (16, 16)}


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """A lab with pictures of several shapes, some of them in several rows."""
    made = Lab.make(tmp_path)
    for name, size in SIZES.items():
        Image.linear_gradient("L").resize(size).convert("RGB").save(tmp_path / "images" / f"{name}.png")
    names = [None, "images/wide.png", "images/tall.png", "images/square.png", "images/wide.png", "images/red.png"]
    write_rows(tmp_path / "rows.jsonl", [row(number, names[number % len(names)]) for number in range(24)])
    return made


def config(lab: Lab, out: str, modality: dict[str, Any], **changes: Any) -> dict[str, Any]:
    learns = {"towers.image.adapter": {"lr": 1e-2}, "decoder.lora": {"lr": 1e-2}}
    values = lab.config(out, [lab.stage(train=learns, **changes)])
    values["model"]["towers"]["image"] = {
        "modality": modality, "adapter": {"kind": "mlp2x_gelu", "end_of": "row"},
    }  # fmt: skip
    return values


def tiles(lab: Lab) -> dict[str, Any]:
    return {"kind": "tiles", "image": {"kind": "clip", "name": str(lab.folder / "clip"), "aspect": "stretch"}}


def several(lab: Lab) -> dict[str, Any]:
    siglip = siglip_folder(lab.folder / "siglip")
    images = [
        {"kind": "clip", "name": str(lab.folder / "clip")},
        {"kind": "clip", "name": str(siglip), "layer": -1},
    ]
    return {"kind": "several", "images": images}


@pytest.mark.parametrize("kind", [tiles, several])
def test_it_does_not_matter_how_a_step_is_computed(lab: Lab, kind: Any) -> None:
    report = doctor(load_run(lab.write(config(lab, "a", kind(lab)))))
    assert report.failed == []


@pytest.mark.parametrize("kind", [tiles, several])
def test_a_run_reads_its_features_from_the_store_and_keeps_its_config(lab: Lab, kind: Any) -> None:
    modality = kind(lab)
    first = load_run(lab.write(config(lab, "a", modality)))
    cold = [step.loss for step in finish(first)]
    warm = [step.loss for step in finish(load_run(lab.write(config(lab, "b", modality))))]
    assert cold == warm
    media = [line["media"]["image"] for line in lines(lab.folder / "b" / "log.jsonl") if line.get("media")]
    assert media
    assert all(step["encoded"] == 0 for step in media)
    assert load_run(lab.folder / "a").config.model == first.config.model


def test_what_is_too_long_is_read_in_fewer_tiles(lab: Lab) -> None:
    recipe = lab.recipe(length=60, too_long="shrink")
    run = load_run(lab.write(config(lab, "a", tiles(lab), recipe=recipe, micro_batch="60 tokens")))
    mixture = run.mixture(run.config.stages[0].recipe)
    media = [medium for pair in mixture.train for turn in mixture.conversation(pair).turns for medium in turn.media]
    readings = run.reader.readings(next(medium for medium in media if "wide" in str(medium.ref)))
    # The overview's 4 features; behind them 2 rows of 6 (1 x 3 tiles), or of 4 (1 x 2), each of which ends.
    assert [reading.tokens for reading in readings] == [4 + 2 * 7, 4 + 2 * 5, 4]
    finish(run)


def test_a_blank_picture_gives_the_features_of_any_grid(tmp_path: Path) -> None:
    spec = Tiles(Spec("clip", Clip(str(clip_folder(tmp_path)))))
    encoder: Any = spec.encoder().eval()
    for grid in (Grid(1, 3, 3), Grid.joined(Grid(1, 2, 2, overview=True), Grid(1, 5, 4))):
        assert encoder(spec.collate([spec.blank(grid)])).values.shape[1] == grid.count


@torch.no_grad()
def test_features_of_several_towers_are_theirs_side_by_side(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    Image.radial_gradient("L").convert("RGB").save(file)
    specs = [Clip(str(clip_folder(tmp_path / "clip"))), Clip(str(siglip_folder(tmp_path / "siglip")), layer=-1)]
    both = Several(tuple(Spec("clip", spec) for spec in specs))
    encoder: Any = both.encoder().eval()
    found = encoder(both.collate([both.load(file, {})])).values
    towers: list[Any] = [spec.encoder().eval() for spec in specs]
    alone = [tower(spec.collate([spec.load(file, {})])).values for spec, tower in zip(specs, towers, strict=True)]
    assert encoder.width == found.shape[-1]
    assert found.equal(torch.cat(alone, dim=2))


CLIP = {"kind": "clip", "name": "x"}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kind": "tiles", "image": {"kind": "clipp", "name": "x"}}, "did you mean 'clip'"),
        ({"kind": "tiles", "image": "clip"}, "write a mapping with a `kind`"),
        ({"kind": "tiles", "image": CLIP, "grids": []}, "rows and columns of tiles"),
        ({"kind": "tiles", "image": {"kind": "tiles", "image": CLIP}}, "isn't a tower for pictures"),
        ({"kind": "several", "images": [CLIP]}, "two towers or more"),
    ],
)
def test_what_is_wrong_inside_is_told(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        modality_spec(settings)


def test_a_tower_with_a_class_token_has_no_tiles(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="leave its class token out"):
        Tiles(Spec("clip", Clip(str(clip_folder(tmp_path)), cls=True))).blank(Grid(1, 2, 2))
