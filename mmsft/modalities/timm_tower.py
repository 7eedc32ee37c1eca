"""Picture towers of timm: its thousand image models, by their features before pooling."""

# timm takes seconds to import, and most data workers need it not at all: it is imported where it is used.

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mmsft.assets import resolve
from mmsft.errors import ConfigError, suggest
from mmsft.modalities.hub import loading, look_for_hub
from mmsft.modalities.image import Picture
from mmsft.modalities.picture import Aspect, Frame
from mmsft.modalities.spec import Features
from mmsft.types import Grid


@dataclass(frozen=True)
class Timm(Picture):
    """Any image model of timm.

    Attributes:
        name: the model, e.g. ``tf_efficientnet_lite0``.
        weights: a safetensors file (its classifier, if any, is left out); None = timm's own from the hub.
        layer: the block or stage that is read, as in timm's `forward_intermediates`; None = what the model pools.
        size: side of the picture in pixels; None = that of the weights.
        aspect: how a picture that isn't square becomes so: pad, crop or stretch.
    """

    name: str
    weights: str | None = None
    layer: int | None = None
    size: int | None = None
    aspect: Aspect = "pad"

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise ValueError(f"size: at least 1 pixel, got {self.size}")

    def frame(self) -> Frame:
        """Returns what the tower expects and gives, by a dry run without weights."""
        return _dry_run(self).frame

    def encoder(self) -> nn.Module:
        """Loads the tower, without its classifier."""
        model = _create(self, pretrained=self.weights is None)
        if self.weights is not None:
            _load(model, self.name, self.weights)
        encoder = TimmEncoder(model, self, _dry_run(self).width)
        _strip(encoder.model, _dry_run(self).unused)
        return encoder


class TimmEncoder(nn.Module):
    """A timm model that gives its features as a grid."""

    def __init__(self, model: Any, spec: Timm, width: int) -> None:
        super().__init__()
        if spec.size is not None and hasattr(model, "set_input_size"):
            model.set_input_size(img_size=spec.size)
        self.layers: list[int] | None = None
        if spec.layer is not None:
            self.layers = model.prune_intermediate_layers([spec.layer], prune_norm=True, prune_head=True)
        # Convolutions run about twice as fast on channels that lie together; the values are the same.
        self.model = model.to(memory_format=torch.channels_last)
        self.width = width

    def grid(self, pixels: Tensor) -> Tensor:
        """Returns the features as they lie in the picture, [N, width, h, w]."""
        features: Tensor
        if self.layers is not None:
            options = {"indices": self.layers, "norm": False, "intermediates_only": True, "output_fmt": "NCHW"}
            (features,) = self.model.forward_intermediates(pixels, **options)
            return features
        features = self.model.forward_features(pixels)
        if features.ndim == 4:
            return features.permute(0, 3, 1, 2) if getattr(self.model, "output_fmt", "NCHW") == "NHWC" else features
        patches = features[:, getattr(self.model, "num_prefix_tokens", 0) :].transpose(1, 2)
        embed = getattr(self.model, "patch_embed", None)
        rows, columns = getattr(embed, "grid_size", (1, patches.shape[2]))
        return patches.reshape(len(patches), -1, rows, columns)

    def forward(self, batch: Mapping[str, Tensor]) -> Features:
        """Encodes ``pixels`` [N, 3, H, W]."""
        pixels = batch["pixels"].contiguous(memory_format=torch.channels_last)
        return Features(self.grid(pixels).flatten(2).transpose(1, 2))


def _create(spec: Timm, pretrained: bool) -> Any:
    import timm

    known = timm.list_models()
    if not timm.is_model(spec.name) and "/" not in spec.name:
        raise ConfigError(f"timm has no model {spec.name!r}{suggest(spec.name, known)}; see timm.list_models()")
    if pretrained:
        look_for_hub()
    with loading("the timm tower", spec.name):
        return timm.create_model(spec.name, pretrained=pretrained, num_classes=0)


def _load(model: Any, name: str, weights: str) -> None:
    path = resolve(weights)
    try:
        state = load_file(path)
    except FileNotFoundError:
        raise ConfigError(f"weights of {name}: {path}: no such file") from None
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"weights of {name}: {path} isn't a whole safetensors file: {error}") from error
    heads = model.pretrained_cfg.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else heads
    state = {key: value for key, value in state.items() if key.rpartition(".")[0] not in heads}
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise ConfigError(f"weights of {name}: {path} belongs to another model: {str(error)[:600]}") from None


def _strip(module: nn.Module, unused: Collection[str]) -> None:
    """Takes parameters out that the features don't depend on: they would learn nothing, and DDP waits for each."""
    for name, child in list(module.named_children()):
        inside = {f"{name}.{own}" for own, _ in child.named_parameters()}
        if inside and inside <= set(unused):
            setattr(module, name, nn.Identity())
        else:
            _strip(child, [own.removeprefix(f"{name}.") for own in inside & set(unused)])
    for name, parameter in list(module.named_parameters(recurse=False)):
        if name in unused:
            delattr(module, name)
            module.register_buffer(name, parameter.detach(), persistent=False)


class _DryRun(NamedTuple):
    width: int
    unused: tuple[str, ...]
    frame: Frame


@cache
def _dry_run(spec: Timm) -> _DryRun:
    """Runs the tower without weights or arithmetic, for its shapes."""
    from timm.data.config import resolve_model_data_config

    with torch.device("meta"), torch.enable_grad():
        model = _create(spec, pretrained=False)
        stated = resolve_model_data_config(model)
        height, width = (spec.size, spec.size) if spec.size else stated["input_size"][1:]
        with loading("the timm tower", f"{spec.name}, layer {spec.layer}, {height} by {width} pixels"):
            features = TimmEncoder(model, spec, 0).grid(torch.empty(1, 3, height, width))
            names, parameters = zip(*model.named_parameters(), strict=True)
            gradients = torch.autograd.grad(features.sum(), parameters, allow_unused=True)
    channels, rows, columns = features.shape[1:]
    unused = tuple(name for name, gradient in zip(names, gradients, strict=True) if gradient is None)
    frame = Frame(
        height=height,
        width=width,
        mean=tuple(stated["mean"]),
        std=tuple(stated["std"]),
        interpolation=stated["interpolation"],
        aspect=spec.aspect,
        grid=Grid(1, rows, columns),
    )
    return _DryRun(channels, unused, frame)
