"""Saves and loads weights as safetensors whose metadata say what they belong to."""

import json
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from mmsft.errors import CheckpointError, suggest
from mmsft.model.fusion import MultimodalModel
from mmsft.model.names import named_parameters
from mmsft.model.tower import Tower

_FORMAT = "mmsft weights 1"


def save_weights(model: nn.Module, path: Path, names: set[str]) -> None:
    """Writes some of the model's weights.

    Args:
        model: the root module, wrapped or not.
        path: the file to write.
        names: canonical names of what is written.

    Raises:
        OSError: the disk is full or can't be written.
    """
    parameters = named_parameters(model)
    tensors = {name: parameters[name].detach().cpu().contiguous() for name in sorted(names)}
    metadata = {"format": _FORMAT, "mmsft": version("mmsft"), "classes": json.dumps(classes(model))}
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:
        raise OSError(f"{path}: {error}") from error


def share(folder: Path, like: str) -> None:
    """Lets those read a folder's safetensors files who may read its file `like`; the library keeps others out."""
    # Some file systems of clusters and clouds know no modes.
    with suppress(OSError):
        for file in folder.glob("*.safetensors"):
            file.chmod((folder / like).stat().st_mode)


@torch.no_grad()
def load_weights(model: nn.Module, path: Path, *, compare_only: bool = False) -> set[str]:
    """Loads what `save_weights` wrote into a model of the same classes; nothing is loaded unless all of it fits.

    Args:
        model: the root module, wrapped or not.
        path: the file.
        compare_only: load nothing even then.

    Returns:
        The canonical names of what the file holds.

    Raises:
        CheckpointError: the file is damaged, of another model, or a tensor has another shape.
    """
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - not a mapping
            _refuse_other_model(model, path, file.metadata() or {}, shapes)
            parameters = {} if compare_only else named_parameters(model)
            for name, parameter in parameters.items():
                if name in shapes:
                    parameter.copy_(file.get_tensor(name))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: can't be read ({error}); start from another checkpoint") from error
    return set(shapes)


def _refuse_other_model(
    model: nn.Module, path: Path, metadata: Mapping[str, str], shapes: Mapping[str, list[int]]
) -> None:
    parameters = named_parameters(model)
    problems = _class_problems(metadata, classes(model))
    for name, shape in shapes.items():
        if name not in parameters:
            problems.append(f"{name} isn't in the model{suggest(name, parameters)}")
        elif list(parameters[name].shape) != shape:
            problems.append(f"{name} is {shape} there and {list(parameters[name].shape)} in the model")
    if problems:
        more = f"\n  … and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise CheckpointError(
            f"{path}: these weights are of another model; set model.* of the config as it was when they were saved\n  "
            + "\n  ".join(problems[:10])
            + more
        )


def classes(model: nn.Module) -> dict[str, str]:
    """Returns the classes that a model is made of, by part; what wraps the root module doesn't count."""
    root = next((module for module in model.modules() if isinstance(module, MultimodalModel)), None)
    if root is None:
        return {"model": type(model).__name__}
    found = {"decoder": type(root.decoder).__name__}
    for name, tower in root.towers.items():
        assert isinstance(tower, Tower)
        found[f"towers.{name}.encoder"] = type(tower.encoder).__name__
        found[f"towers.{name}.adapter"] = type(tower.adapter).__name__
    return found


def _class_problems(metadata: Mapping[str, str], now: dict[str, str]) -> list[str]:
    if metadata.get("format") != _FORMAT:
        return [f"the file's format is {metadata.get('format')!r}, expected {_FORMAT!r}: was it saved by mmsft?"]
    saved: dict[str, str] = json.loads(metadata["classes"])
    return [
        f"{part} is a {saved[part]} there and a {now[part]} in the model"
        for part in saved
        if part in now and saved[part] != now[part]
    ]
