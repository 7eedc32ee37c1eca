"""BLIP-2 end to end: tower, Q-Former, projection and language model give transformers' logits, loss and gradients."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mmsft.adapters import QFormer
from mmsft.errors import ConfigError
from mmsft.modalities import Blip
from mmsft.types import Grid
from tests.model.blip import SIZES, VISION, blip2, ours, their_inputs
from tests.model.tiny import IMG, Row, batch_of, clip_folder, image

TOLERANCE = 2e-4
"""fp32: 0 on one thread. On several, torch sums few rows in another order; norms of 8 numbers make 1e-5 of that."""
SLOTS = [IMG] * 3


def rows() -> list[Row]:
    """One picture, two pictures in a row, and a picture that two rows share; of several lengths."""
    one, two = image(1), image(2)
    return [
        Row([*SLOTS, 1, 5, 6, 2], [one], learn_from=5),
        Row([1, 7, *SLOTS, 8, *SLOTS, 9, 10, 2], [one, two], learn_from=9),
        Row([*SLOTS, 1, 30, 31, 32, 33, 34, 2], [two], learn_from=4),
    ]


@torch.no_grad()
def test_logits_and_loss_equal_those_of_transformers_blip2(tmp_path: Path) -> None:
    theirs = blip2()
    model = ours(theirs, tmp_path)
    batch = batch_of(rows(), Grid(1, 1, 5))
    expected = theirs(**their_inputs(batch))
    torch.testing.assert_close(model.logits(batch)[batch.mask], expected.logits[batch.mask], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(model(batch).mean(), expected.loss, atol=TOLERANCE, rtol=0)


def test_gradients_equal_those_of_transformers_blip2(tmp_path: Path) -> None:
    theirs = blip2()
    model = ours(theirs, tmp_path)
    batch = batch_of(rows(), Grid(1, 1, 5))
    model(batch).mean().backward()
    theirs(**their_inputs(batch)).loss.backward()
    expected = dict(theirs.named_parameters())
    tower = "towers.image"
    for name, stated in {
        f"{tower}.adapter.frame.queries": "query_tokens",
        f"{tower}.adapter.frame.qformer.encoder.layer.2.crossattention.attention.key.weight": (
            "qformer.encoder.layer.2.crossattention.attention.key.weight"
        ),
        f"{tower}.adapter.projection.layers.weight": "language_projection.weight",
        f"{tower}.encoder.model.embeddings.class_embedding": "vision_model.embeddings.class_embedding",
    }.items():
        found = model.get_parameter(name).grad
        assert found is not None
        torch.testing.assert_close(found, expected[stated].grad.view_as(found), atol=TOLERANCE, rtol=1e-3)


@torch.no_grad()
def test_features_are_those_of_the_whole_models_tower(tmp_path: Path) -> None:
    theirs = blip2()
    theirs.save_pretrained(tmp_path, max_shard_size="5KB")  # in many files
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    spec = Blip(str(tmp_path))
    encoder: Any = spec.encoder().eval()
    pixels = torch.randn(2, 3, 8, 8)
    found = encoder({"pixels": pixels}).values
    assert torch.equal(found, theirs.vision_model(pixels).last_hidden_state)
    assert (spec.frame().grid, spec.frame().aspect, encoder.width) == (Grid(1, 1, 5), "stretch", VISION["hidden_size"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 4}, "heads is 2 there and 4 here; set them as they are there"),
        ({"queries": 4, "cross_every": 1}, "queries is 3 there and 4 here; cross_every is 2 there and 1 here"),
    ],
)
def test_weights_of_other_sizes_are_refused_with_both(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    blip2().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=message):
        QFormer(**SIZES | changes, weights=str(tmp_path)).build(12, 16)


def test_weights_that_do_not_fit_the_tower_or_the_decoder_are_refused(tmp_path: Path) -> None:
    blip2().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="the features' width is 12 there and 20 here"):
        QFormer(**SIZES, weights=str(tmp_path)).build(20, 16)
    with pytest.raises(ConfigError, match=r"doesn't fit: weight is \[16, 8\] there and \[24, 8\] here; bias is"):
        QFormer(**SIZES, weights=str(tmp_path), projection=True).build(12, 24)


def test_another_model_is_refused_as_tower_and_as_weights(tmp_path: Path) -> None:
    folder = str(clip_folder(tmp_path / "clip"))
    with pytest.raises(ConfigError, match="is a clip_vision_model model; kind blip loads BLIP-2 and InstructBLIP"):
        Blip(folder).frame()
    with pytest.raises(ConfigError, match="that is a clip_vision_model model; without `instruction`, name a blip-2"):
        QFormer(**SIZES, weights=folder).build(12, 16)
    with pytest.raises(ConfigError, match="no such file or folder"):
        QFormer(**SIZES, weights=str(tmp_path / "none")).build(12, 16)
