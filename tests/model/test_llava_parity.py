from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPVisionModel, LlavaConfig, LlavaForConditionalGeneration

from mmsft.adapters import Mlp2xGelu
from mmsft.modalities import Clip
from mmsft.model.fusion import MultimodalModel
from mmsft.types import Batch
from tests.model.tiny import Row, batch_of, clip_config, image, llama, llama_config, mixed_rows, model_with_tower

IGNORED = -100
TOLERANCE = 1e-5
"""fp32: the two sum the same products, in another order where rows are padded."""


def pair(folder: Path, layer: int = -2, cls: bool = False) -> tuple[MultimodalModel, LlavaForConditionalGeneration]:
    """Returns our model and transformers' with the same weights, by a map of names that is written out here."""
    theirs: Any = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=clip_config(),
            text_config=llama_config(),
            image_token_index=49,
            image_seq_length=5 if cls else 4,
            vision_feature_layer=layer,
            vision_feature_select_strategy="full" if cls else "default",
        )
    ).eval()
    vision = CLIPVisionModel(clip_config())
    vision.load_state_dict(theirs.model.vision_tower.state_dict())
    vision.save_pretrained(folder)
    decoder = llama()
    decoder.model.load_state_dict(theirs.model.language_model.state_dict())
    decoder.lm_head.load_state_dict(theirs.lm_head.state_dict())
    ours = model_with_tower(Clip(str(folder), layer=layer, cls=cls), Mlp2xGelu(), decoder)
    projector = theirs.model.multi_modal_projector
    layers: Any = ours.get_submodule("towers.image.adapter.layers")
    layers[0].load_state_dict(projector.linear_1.state_dict())
    layers[2].load_state_dict(projector.linear_2.state_dict())
    return ours, theirs


def their_inputs(batch: Batch) -> dict[str, torch.Tensor]:
    inputs = {"input_ids": batch.input_ids.clone(), "attention_mask": batch.mask.long()}
    for media in batch.media.values():
        inputs["input_ids"].view(-1)[media.slots] = 49
        pixels = media.groups[0].tensors["pixels"]
        inputs["pixel_values"] = pixels[[use.index for use in media.uses]]
    return inputs


def their_labels(batch: Batch) -> torch.Tensor:
    labels = torch.full_like(batch.input_ids, IGNORED)
    labels.view(-1)[batch.targets.at + 1] = batch.targets.token
    return labels


@pytest.mark.parametrize(("layer", "cls"), [(-2, False), (-1, False), (1, False), (-2, True)])
@torch.no_grad()
def test_logits_equal_those_of_transformers_llava(tmp_path: Path, layer: int, cls: bool) -> None:
    ours, theirs = pair(tmp_path, layer, cls)
    slots = 5 if cls else 4
    batch = batch_of([Row([1, 5, *[-1] * slots, 9, 10, 2], [image(1)])])
    torch.testing.assert_close(ours.logits(batch), theirs(**their_inputs(batch)).logits, atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_loss_of_seven_mixed_rows_equals_that_of_transformers_llava(tmp_path: Path) -> None:
    ours, theirs = pair(tmp_path)
    batch = batch_of(mixed_rows())
    expected = theirs(**their_inputs(batch), labels=their_labels(batch)).loss
    torch.testing.assert_close(ours(batch).mean(), expected, atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_each_row_alone_has_the_loss_that_it_has_in_the_batch(tmp_path: Path) -> None:
    ours, _ = pair(tmp_path)
    rows = mixed_rows()
    alone = torch.cat([ours(batch_of([row])) for row in rows])
    torch.testing.assert_close(alone, ours(batch_of(rows)), atol=TOLERANCE, rtol=0)


def test_gradients_equal_those_of_transformers_llava(tmp_path: Path) -> None:
    ours, theirs = pair(tmp_path)
    batch = batch_of(mixed_rows())
    ours(batch).mean().backward()
    theirs(**their_inputs(batch), labels=their_labels(batch)).loss.backward()
    expected = dict(theirs.named_parameters())
    for name, stated in {
        "towers.image.adapter.layers.0.weight": "model.multi_modal_projector.linear_1.weight",
        "towers.image.encoder.model.encoder.layers.0.self_attn.q_proj.weight": (
            "model.vision_tower.encoder.layers.0.self_attn.q_proj.weight"
        ),
        "decoder.model.layers.1.mlp.up_proj.weight": "model.language_model.layers.1.mlp.up_proj.weight",
    }.items():
        torch.testing.assert_close(ours.get_parameter(name).grad, expected[stated].grad, atol=TOLERANCE, rtol=1e-4)
