import pickle
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

from mmsft.errors import ConfigError, DataError
from mmsft.modalities import Clip, OpenClip, Timm, modality_spec
from mmsft.modalities.open_clip_tower import OpenClipEncoder
from mmsft.types import Grid
from tests.model.tiny import clip_folder


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def siglip_folder(folder: Path) -> Path:
    config = SiglipVisionConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2, image_size=8, patch_size=4
    )
    SiglipVisionModel(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("layer", [-1, -2, 1, 3])
@pytest.mark.parametrize("kind", ["clip", "siglip"])
@torch.no_grad()
def test_features_are_the_hidden_states_of_transformers(tmp_path: Path, kind: str, layer: int) -> None:
    folder = clip_folder(tmp_path) if kind == "clip" else siglip_folder(tmp_path)
    encoder: Any = Clip(str(folder), layer=layer).encoder().eval()
    cls: Any = CLIPVisionModel if kind == "clip" else SiglipVisionModel
    whole = cls.from_pretrained(folder).eval()
    pixels = torch.randn(2, 3, 8, 8)
    expected = whole(pixels, output_hidden_states=True).hidden_states[layer]
    found = encoder({"pixels": pixels}).values
    assert found.shape == (2, 4, encoder.width)
    # fp32: the same operations.
    torch.testing.assert_close(found, expected[:, 1:] if kind == "clip" else expected, atol=1e-6, rtol=1e-6)


def test_every_parameter_of_a_cut_off_clip_gets_a_gradient(tmp_path: Path) -> None:
    for folder in (clip_folder(tmp_path / "clip"), siglip_folder(tmp_path / "siglip")):
        encoder: Any = Clip(str(folder)).encoder()
        encoder({"pixels": torch.randn(1, 3, 8, 8)}).values.sum().backward()
        assert not [name for name, parameter in encoder.named_parameters() if parameter.grad is None]


def test_the_class_token_is_kept_on_demand_and_siglip_has_none(tmp_path: Path) -> None:
    spec = Clip(str(clip_folder(tmp_path / "clip")), cls=True)
    assert spec.frame().grid == Grid(1, 1, 5)
    encoder: Any = spec.encoder()
    assert encoder({"pixels": torch.randn(1, 3, 8, 8)}).values.shape[1] == 5
    with pytest.raises(ConfigError, match="SigLIP, which has no class token"):
        Clip(str(siglip_folder(tmp_path / "siglip")), cls=True).frame()


@pytest.mark.parametrize("layer", [0, 4, -4])
def test_a_layer_that_the_tower_lacks_is_an_error_with_the_range(tmp_path: Path, layer: int) -> None:
    with pytest.raises(ConfigError, match=rf"layer {layer} of .*write 1 to 3, or -1 to -3"):
        Clip(str(clip_folder(tmp_path)), layer=layer).frame()


def test_the_frame_of_clip_follows_its_preprocessor(tmp_path: Path) -> None:
    clip_folder(tmp_path)
    spec = Clip(str(tmp_path))
    assert (spec.frame().height, spec.frame().grid, spec.frame().aspect) == (8, Grid(1, 2, 2), "pad")
    assert spec.frame().mean == (0.48145466, 0.4578275, 0.40821073)


@pytest.mark.parametrize("layer", [-2, -1, 1])
@torch.no_grad()
def test_open_clip_features_are_those_inside_its_own_tower(layer: int) -> None:
    whole: Any = open_clip.model.CLIP(
        embed_dim=8,
        vision_cfg={"image_size": 8, "layers": 3, "width": 64, "patch_size": 4, "head_width": 32},
        text_cfg={"context_length": 4, "vocab_size": 9, "width": 8, "heads": 1, "layers": 1},
    ).visual.eval()
    pixels = torch.randn(2, 3, 8, 8)
    seen: list[torch.Tensor] = []
    blocks = whole.transformer.resblocks
    hook = blocks[layer - 1 if layer > 0 else layer].register_forward_hook(lambda *call: seen.append(call[2]))
    whole(pixels)
    hook.remove()
    encoder = OpenClipEncoder(whole, layer, 64)
    found = encoder({"pixels": pixels}).values
    torch.testing.assert_close(found, seen[0][:, 1:], atol=1e-6, rtol=1e-6)  # fp32: the same operations
    assert len(whole.transformer.resblocks) == (layer if layer > 0 else 4 + layer)


def test_open_clip_weights_trained_with_quickgelu_are_refused_for_a_model_without() -> None:
    with pytest.raises(ConfigError, match="write name: ViT-B-32-quickgelu"):
        OpenClip("ViT-B-32", "openai").frame()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (OpenClip("ViT-B-33", "openai"), r"no model 'ViT-B-33' \(did you mean 'ViT-B-32'"),
        (OpenClip("ViT-B-32", "openia"), r"no weights 'openia' for ViT-B-32 \(did you mean 'openai'"),
        (Timm("tf_eficientnet_lite0"), r"timm has no model .*did you mean 'tf_efficientnet_lite0'"),
        (Clip("./nowhere"), r"\./nowhere: no such file or folder"),
    ],
)
def test_an_unknown_name_is_an_error_with_a_suggestion(spec: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        spec.frame()


def timm_file(folder: Path, name: str) -> Path:
    save_file(timm.create_model(name, pretrained=False).state_dict(), folder / "w.safetensors")
    return folder / "w.safetensors"


@torch.no_grad()
def test_timm_features_are_what_it_pools_and_the_classifier_is_left_out(tmp_path: Path) -> None:
    path = timm_file(tmp_path, "mobilenetv3_small_050")
    encoder: Any = Timm("mobilenetv3_small_050", weights=str(path), size=64).encoder().eval()
    own: Any = timm.create_model("mobilenetv3_small_050", pretrained=False, checkpoint_path=str(path)).eval()
    pixels = torch.randn(2, 3, 64, 64)
    found = encoder({"pixels": pixels}).values
    assert found.shape == (2, 4, encoder.width)
    expected = own.forward_features(pixels).flatten(2).transpose(1, 2)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)  # fp32: the same operations
    assert not [name for name, _ in encoder.named_parameters() if "classifier" in name]


@torch.no_grad()
def test_timm_tokens_leave_out_the_class_token_and_know_their_grid(tmp_path: Path) -> None:
    path = timm_file(tmp_path, "test_vit")
    spec = Timm("test_vit", weights=str(path))
    assert spec.frame().grid == Grid(1, 10, 10)
    encoder: Any = spec.encoder().eval()
    own: Any = timm.create_model("test_vit", pretrained=False, checkpoint_path=str(path)).eval()
    pixels = torch.randn(1, 3, 160, 160)
    expected = own.forward_features(pixels)[:, own.num_prefix_tokens :]
    torch.testing.assert_close(encoder({"pixels": pixels}).values, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("layer", [1, -2, -1])
@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet", "test_resnet", "test_convnext"])
@torch.no_grad()
def test_a_layer_of_timm_is_that_of_its_forward_intermediates(name: str, layer: int, tmp_path: Path) -> None:
    path = timm_file(tmp_path, name)
    encoder: Any = Timm(name, weights=str(path), layer=layer).encoder().eval()
    own: Any = timm.create_model(name, pretrained=False, checkpoint_path=str(path)).eval()
    pixels = torch.randn(1, 3, 160, 160)
    layers = own.forward_intermediates(pixels, norm=False, intermediates_only=True)
    expected = layers[layer].flatten(2).transpose(1, 2)
    torch.testing.assert_close(encoder({"pixels": pixels}).values, expected, atol=1e-6, rtol=1e-6)


def test_the_size_of_a_timm_tower_changes_its_grid_and_its_positions(tmp_path: Path) -> None:
    spec = Timm("test_vit", weights=str(timm_file(tmp_path, "test_vit")), size=64)
    encoder: Any = spec.encoder()
    assert spec.frame().grid == Grid(1, 4, 4)
    assert encoder({"pixels": torch.zeros(1, 3, 64, 64)}).values.shape == (1, 16, encoder.width)


def test_efficientnet_lite0_gives_49_tokens_of_pixels_around_zero() -> None:
    frame = Timm("tf_efficientnet_lite0").frame()
    assert (frame.grid, frame.height, frame.mean, frame.std) == (Grid(1, 7, 7), 224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def test_weights_of_another_timm_model_or_no_weights_are_errors(tmp_path: Path) -> None:
    path = timm_file(tmp_path, "test_vit")
    with pytest.raises(ConfigError, match="belongs to another model"):
        Timm("mobilenetv3_small_050", weights=str(path)).encoder()
    with pytest.raises(ConfigError, match="no such file"):
        Timm("test_vit", weights=str(tmp_path / "x.safetensors")).encoder()
    path.write_bytes(b"no")
    with pytest.raises(ConfigError, match="isn't a whole safetensors file"):
        Timm("test_vit", weights=str(path)).encoder()


def test_a_tower_reads_a_picture_as_its_frame_says_and_probes_only_the_header(tmp_path: Path) -> None:
    spec = Timm("tf_efficientnet_lite0", size=64)
    Image.new("RGB", (50, 20), "white").save(tmp_path / "a.png")
    assert spec.probe(tmp_path / "a.png", {}) == Grid(1, 2, 2)
    assert spec.load(tmp_path / "a.png", {})["pixels"].shape == spec.blank(Grid(1, 2, 2))["pixels"].shape == (3, 64, 64)
    (tmp_path / "b.png").write_bytes(b"x")
    with pytest.raises(DataError, match="not a picture"):
        spec.probe(tmp_path / "b.png", {})


def test_specs_are_picklable_for_data_workers(tmp_path: Path) -> None:
    for spec in (Clip(str(clip_folder(tmp_path))), Timm("test_vit"), OpenClip("ViT-B-32", "laion2b_s34b_b79k")):
        again = pickle.loads(pickle.dumps(spec))
        assert again == spec
        assert hash(again) == hash(spec)


def test_a_config_states_a_tower_by_its_kind() -> None:
    assert modality_spec({"kind": "clip", "name": "x", "layer": -1}).value == Clip("x", layer=-1)


@pytest.mark.parametrize(
    ("name", "size", "kwargs"),
    [("vit_tiny_patch16_224", 32, {}), ("convnext_atto", 64, {}), ("vit_base_patch16_siglip_224", 32, {"depth": 1})],
)
def test_a_timm_tower_holds_nothing_that_its_features_do_not_depend_on(
    monkeypatch: pytest.MonkeyPatch, name: str, size: int, kwargs: dict[str, Any]
) -> None:
    create = timm.create_model

    def random(name: str, pretrained: bool, num_classes: int) -> Any:
        return create(name, num_classes=num_classes, **kwargs)

    monkeypatch.setattr(timm, "create_model", random)
    encoder: Any = Timm(name, size=size).encoder()
    pixels = torch.randn(1, 3, size, size)
    encoder({"pixels": pixels}).values.sum().backward()
    assert [name for name, parameter in encoder.named_parameters() if parameter.grad is None] == []
    assert not any("attn_pool" in name or "head" in name for name, _ in encoder.named_parameters())
