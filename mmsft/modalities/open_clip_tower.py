"""Picture towers of open_clip."""

# open_clip takes seconds to import, and most data workers need it not at all: it is imported where it is used.

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmsft.assets import resolve
from mmsft.errors import ConfigError, suggest
from mmsft.modalities.hub import loading, look_for_hub
from mmsft.modalities.image import CLIP_MEAN, CLIP_STD, Picture
from mmsft.modalities.picture import Aspect, Frame
from mmsft.modalities.spec import Features
from mmsft.types import Grid


@dataclass(frozen=True)
class OpenClip(Picture):
    """The vision tower of an open_clip model.

    Attributes:
        name: the model, e.g. ``ViT-B-16`` or ``ViT-L-14-336-quickgelu``.
        pretrained: a tag of open_clip's, or a file of weights.
        layer: whose output are the features: -1 the last block's, -2 that before it, 1 the first's.
        aspect: how a picture that isn't square becomes so: pad, crop or stretch.
    """

    name: str
    pretrained: str
    layer: int = -2
    aspect: Aspect = "pad"

    def frame(self) -> Frame:
        """Returns what the tower expects and gives, by a dry run without weights."""
        return _frame(self)

    def encoder(self) -> nn.Module:
        """Loads the tower up to the block that is read."""
        import open_clip

        _check_open_clip(self)
        path = resolve(self.pretrained)
        if not path.is_file():
            look_for_hub()
        with loading("the open_clip tower", f"{self.name}, {self.pretrained}"):
            whole = open_clip.create_model(self.name, pretrained=str(path) if path.is_file() else self.pretrained)
        return OpenClipEncoder(whole.visual, self.layer, _dry_run(self).width)


class OpenClipEncoder(nn.Module):
    """An open_clip vision tower cut off above the block that is read: what lies above would never learn."""

    def __init__(self, model: nn.Module, layer: int, width: int) -> None:
        super().__init__()
        index = layer - 1 if layer > 0 else layer
        trunk: Any = getattr(model, "trunk", model)
        # Pruning counts what is left, so that the block which is read is the last one from here on.
        trunk.prune_intermediate_layers([index], prune_norm=True, prune_head=True)
        if trunk is not model:
            model.head = nn.Identity()
        self.model: Any = model
        self.width = width

    def grid(self, pixels: Tensor) -> Tensor:
        """Returns the features as they lie in the picture, [N, width, h, w]."""
        found: Tensor = self.model.forward_intermediates(
            pixels, indices=[-1], intermediates_only=True, output_fmt="NCHW"
        )["image_intermediates"][0]
        return found

    def forward(self, batch: Mapping[str, Tensor]) -> Features:
        """Encodes ``pixels`` [N, 3, H, W]."""
        return Features(self.grid(batch["pixels"]).flatten(2).transpose(1, 2))


def _check_open_clip(spec: OpenClip) -> None:
    import open_clip

    if spec.name not in open_clip.list_models():
        raise ConfigError(f"open_clip has no model {spec.name!r}{suggest(spec.name, open_clip.list_models())}")
    if resolve(spec.pretrained).is_file():
        return
    tags = open_clip.list_pretrained_tags_by_model(spec.name)
    if spec.pretrained not in tags:
        raise ConfigError(
            f"open_clip has no weights {spec.pretrained!r} for {spec.name}{suggest(spec.pretrained, tags)}; "
            f"its tags: {', '.join(tags) or 'none'}; or name a file"
        )
    quick = f"{spec.name}-quickgelu"
    if open_clip.get_pretrained_cfg(spec.name, spec.pretrained).get("quick_gelu") and quick in open_clip.list_models():
        raise ConfigError(
            f"the weights {spec.pretrained!r} were trained with QuickGELU, and {spec.name} computes GELU: "
            f"the features would be silently wrong; write name: {quick}"
        )


class _DryRun(NamedTuple):
    input: tuple[int, int]
    width: int
    grid: Grid


@cache
def _dry_run(spec: OpenClip) -> _DryRun:
    """Runs the tower without weights or arithmetic, for its shapes."""
    import open_clip

    _check_open_clip(spec)
    with torch.device("meta"), torch.no_grad(), loading("the open_clip tower", f"{spec.name}, layer {spec.layer}"):
        model = open_clip.create_model(spec.name, load_weights=False, pretrained_text=False, device="meta").visual
        side = model.image_size
        height, width = side if isinstance(side, tuple) else (side, side)
        _, channels, rows, columns = OpenClipEncoder(model, spec.layer, 0).grid(torch.empty(1, 3, height, width)).shape
    return _DryRun((height, width), channels, Grid(1, rows, columns))


@cache
def _frame(spec: OpenClip) -> Frame:
    import open_clip

    run = _dry_run(spec)
    stated = open_clip.get_pretrained_cfg(spec.name, spec.pretrained) or {}
    return Frame(
        height=run.input[0],
        width=run.input[1],
        mean=tuple(stated.get("mean") or CLIP_MEAN),
        std=tuple(stated.get("std") or CLIP_STD),
        interpolation=stated.get("interpolation") or "bicubic",
        aspect=spec.aspect,
        grid=run.grid,
    )
