"""EfficientNet-Lite0's weights, by the names that timm gives them."""

from pathlib import Path
from typing import Final

from mmsft.errors import ConfigError

TIMM_LITE0: Final = "tf_efficientnet_lite0"
"""timm's name of EfficientNet-Lite0; `efficientnet_lite0` takes the same weights, pads otherwise, and is wrong."""


def prepare_efficientnet(folder: Path) -> None:
    """Renames the weights to timm's names: both list the same tensors in the same order, so order and shape decide."""
    import timm
    import torch
    from safetensors.torch import save_file

    file = folder / "efficientnet-lite0-57934424.pth"
    theirs: dict[str, torch.Tensor] = torch.load(file, weights_only=True, map_location="cpu")
    with torch.device("meta"):
        ours = timm.create_model(TIMM_LITE0, pretrained=False).state_dict()
    shapes = [list(tensor.shape) for tensor in theirs.values()]
    if shapes != [list(tensor.shape) for tensor in ours.values()]:
        raise ConfigError(f"{file.name}: its tensors are no longer those of timm's {TIMM_LITE0}; install timm 1.0.31")
    renamed = {name: tensor.contiguous() for name, tensor in zip(ours, theirs.values(), strict=True)}
    save_file(renamed, folder / f"{TIMM_LITE0}.safetensors", metadata={"architecture": f"timm/{TIMM_LITE0}"})
    file.unlink()
