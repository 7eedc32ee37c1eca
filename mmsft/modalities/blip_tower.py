"""Picture towers of BLIP-2 and InstructBLIP, out of whole models of transformers."""

# transformers takes seconds to import, and most data workers need it not at all: it is imported where it is used.

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from mmsft.errors import ConfigError
from mmsft.modalities.hub import located
from mmsft.modalities.image import CLIP_MEAN, CLIP_STD, Picture
from mmsft.modalities.picture import Aspect, Frame
from mmsft.modalities.pretrained import fill, read_settings, read_tensors
from mmsft.modalities.spec import Features
from mmsft.types import Grid

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_WHAT = "the blip tower"


@dataclass(frozen=True)
class Blip(Picture):
    """The vision tower of a BLIP-2 or InstructBLIP (EVA-CLIP's): its last layer, normalised, with the class token.

    Attributes:
        name: a hub id, a folder, or ``asset:NAME`` of the whole model; no other part of it is read.
        aspect: how a picture that isn't square becomes so: pad, crop or stretch.
    """

    name: str
    aspect: Aspect = "stretch"

    def frame(self) -> Frame:
        """Returns what the tower expects and gives, by its configuration."""
        return _frame(self)

    def encoder(self) -> nn.Module:
        """Loads the tower."""
        from transformers import Blip2VisionModel, InstructBlipVisionModel

        config: Any = _vision_config(self.name)
        cls: Any = Blip2VisionModel if config.model_type == "blip_2_vision_model" else InstructBlipVisionModel
        model = cls(config)
        fill(model, read_tensors(_WHAT, self.name, "vision_model."), _WHAT, self.name)
        return BlipEncoder(model)


class BlipEncoder(nn.Module):
    """A vision transformer and its last norm."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.width: int = model.config.hidden_size

    def forward(self, batch: Mapping[str, Tensor]) -> Features:
        """Encodes ``pixels`` [N, 3, H, W]."""
        hidden: Tensor = self.model(pixel_values=batch["pixels"].to(self.model.dtype)).last_hidden_state
        return Features(hidden)


def _vision_config(name: str) -> "PretrainedConfig":
    config: Any = read_settings(_WHAT, name)
    if config.model_type not in ("blip-2", "instructblip"):
        raise ConfigError(f"{_WHAT} {name!r} is a {config.model_type} model; kind blip loads BLIP-2 and InstructBLIP")
    vision: PretrainedConfig = config.vision_config
    return vision


@cache
def _frame(spec: Blip) -> Frame:
    from transformers import AutoImageProcessor

    config: Any = _vision_config(spec.name)
    try:
        stated = AutoImageProcessor.from_pretrained(located(spec.name)).to_dict()
    except (OSError, ValueError):  # a model without a preprocessor's configuration
        stated = {}
    side, patch = config.image_size, config.patch_size
    return Frame(
        height=side,
        width=side,
        mean=tuple(stated.get("image_mean") or CLIP_MEAN),
        std=tuple(stated.get("image_std") or CLIP_STD),
        interpolation="bicubic",
        aspect=spec.aspect,
        # With the class token the features form no rectangle of patches.
        grid=Grid(1, 1, (side // patch) ** 2 + 1),
    )
