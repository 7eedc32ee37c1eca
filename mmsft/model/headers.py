"""What a model's safetensors files hold, by their headers alone."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import get_local_safetensors_metadata, get_safetensors_metadata, try_to_load_from_cache
from safetensors import safe_open
from torch import Tensor


def read_headers(source: str, revision: str) -> dict[str, Tensor]:
    """Returns a model's tensors by name, without their values: on the meta device.

    Args:
        source: a folder, or a hub id: from its cache if the weights are there, else from the hub.
        revision: of a hub id.

    Raises:
        OSError: a file is missing or can't be read.
        SafetensorError: a file is cut off.
        SafetensorsParsingError: a file has no proper header.
        NotASafetensorsRepoError: there are no safetensors.
        httpx.HTTPError: the hub refuses.
    """
    if Path(source).is_dir():
        return _of_folder(Path(source))
    for file in ("model.safetensors", "model.safetensors.index.json"):
        cached = try_to_load_from_cache(source, file, revision=revision)
        if isinstance(cached, str):
            with suppress(FileNotFoundError):  # the cache holds some of the files
                return _of_folder(Path(cached).parent)
    return _tensors(get_safetensors_metadata(source, revision=revision).files_metadata)


def _of_folder(folder: Path) -> dict[str, Tensor]:
    files = get_local_safetensors_metadata(folder).files_metadata
    for file in files:
        with safe_open(folder / file, framework="pt"):  # refuses a file shorter than its header says
            pass
    return _tensors(files)


def _tensors(files: Mapping[str, Any]) -> dict[str, Tensor]:
    return {
        name: torch.empty(tensor.shape, device="meta")
        for file in files.values()
        for name, tensor in file.tensors.items()
    }
