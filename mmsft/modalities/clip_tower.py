"""Picture towers of transformers: CLIP and SigLIP."""

# transformers takes seconds to import, and most data workers need it not at all: it is imported where it is used.

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mmsft.errors import ConfigError
from mmsft.modalities.hub import loading, located
from mmsft.modalities.image import CLIP_MEAN, CLIP_STD, HALF, Picture
from mmsft.modalities.picture import Aspect, Frame
from mmsft.modalities.spec import Features
from mmsft.types import Grid

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Clip(Picture):
    """A CLIP or SigLIP vision tower of transformers.

    Attributes:
        name: a hub id, a folder, or ``asset:NAME``.
        layer: whose output are the features, as in transformers' `hidden_states`: -1 the last, -2 that before it.
        cls: keep the class token, before the patches.
        aspect: how a picture that isn't square becomes so: pad, crop or stretch.
    """

    name: str
    layer: int = -2
    cls: bool = False
    aspect: Aspect = "pad"

    def frame(self) -> Frame:
        """Returns what the tower expects and gives, by its configuration."""
        return _clip_frame(self)

    def encoder(self) -> nn.Module:
        """Loads the tower up to the layer that is read."""
        model = clip_model(self.name)
        return ClipEncoder(model, clip_depth(model.config, self), self.cls)


class ClipEncoder(nn.Module):
    """A vision transformer cut off above the layer that is read: what lies above would cost time and never learn."""

    def __init__(self, model: Any, depth: int, cls: bool) -> None:
        super().__init__()
        model.encoder.layers = model.encoder.layers[:depth]
        model.post_layernorm = nn.Identity()
        if hasattr(model, "use_head"):
            model.use_head, model.head = False, None
        self.model = model
        self.width: int = model.config.hidden_size
        self.skip = 1 if has_cls(model.config) and not cls else 0

    def forward(self, batch: Mapping[str, Tensor]) -> Features:
        """Encodes ``pixels`` [N, 3, H, W]."""
        hidden: Tensor = self.model(pixel_values=batch["pixels"].to(self.model.dtype)).last_hidden_state
        return Features(hidden[:, self.skip :])


def clip_config(name: str) -> "PretrainedConfig":
    """Reads the configuration of a CLIP or SigLIP vision tower.

    Raises:
        ConfigError: it can't be read, or is of another kind of model.
    """
    from transformers import AutoConfig

    with loading("the clip tower", name):
        config = AutoConfig.from_pretrained(located(name))
    vision: PretrainedConfig = getattr(config, "vision_config", config)
    if vision.model_type not in {"clip_vision_model", "siglip_vision_model"}:
        raise ConfigError(
            f"the clip tower {name!r} is a {config.model_type} model; kind clip loads CLIP and SigLIP, "
            "kind timm a thousand others"
        )
    return vision


def clip_model(name: str) -> "PreTrainedModel":
    """Loads a whole CLIP or SigLIP vision tower."""
    from transformers import CLIPVisionModel, SiglipVisionModel

    config = clip_config(name)
    cls = SiglipVisionModel if config.model_type == "siglip_vision_model" else CLIPVisionModel
    with loading("the clip tower", name):
        # The towers of transformers share one attention setting per configuration object: this one is this tower's own.
        model: PreTrainedModel = cls.from_pretrained(
            located(name), config=config, use_safetensors=True, dtype=torch.float32
        )
    return model


def clip_depth(config: "PretrainedConfig", spec: Clip) -> int:
    """Returns how many layers are run."""
    layers: int = config.num_hidden_layers
    depth = spec.layer if spec.layer >= 0 else layers + 1 + spec.layer
    if not 1 <= depth <= layers:
        raise ConfigError(
            f"layer {spec.layer} of {spec.name!r}: it has {layers}; write 1 to {layers}, or -1 to {-layers}"
        )
    return depth


def has_cls(config: "PretrainedConfig") -> bool:
    """Tells whether the tower has a class token."""
    return bool(config.model_type == "clip_vision_model")


@cache
def _clip_frame(spec: Clip) -> Frame:
    from transformers import AutoImageProcessor

    config = clip_config(spec.name)
    clip_depth(config, spec)
    if spec.cls and not has_cls(config):
        raise ConfigError(f"cls: {spec.name!r} is a SigLIP, which has no class token; leave `cls` out")
    try:
        stated = AutoImageProcessor.from_pretrained(located(spec.name)).to_dict()
    except (OSError, ValueError):  # a tower without a preprocessor's configuration: its family's values
        stated = {}
    mean, std = (CLIP_MEAN, CLIP_STD) if has_cls(config) else (HALF, HALF)
    side = config.image_size
    return Frame(
        height=side,
        width=side,
        mean=tuple(stated.get("image_mean") or mean),
        std=tuple(stated.get("image_std") or std),
        interpolation="bicubic",
        aspect=spec.aspect,
        grid=_clip_grid(side // config.patch_size, spec.cls),
    )


def _clip_grid(side: int, cls: bool) -> Grid:
    # With the class token the features no longer form a rectangle of patches.
    return Grid(1, 1, side**2 + 1) if cls else Grid(1, side, side)
