"""Parts of a pretrained model: its tensors whose names begin alike, of the files that hold them and of no others."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from mmsft.errors import ConfigError
from mmsft.modalities.hub import loading, located

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


def read_settings(what: str, name: str) -> "PretrainedConfig":
    """Reads the configuration of a model of transformers.

    Args:
        what: loads it, for errors.
        name: a hub id, a folder, or ``asset:NAME``.

    Raises:
        ConfigError: it can't be read.
    """
    from transformers import AutoConfig

    with loading(what, name):
        settings: PretrainedConfig = AutoConfig.from_pretrained(located(name))
    return settings


def read_tensors(what: str, name: str, prefix: str) -> dict[str, Tensor]:
    """Reads the tensors of a model whose names begin so, in fp32, by what follows that.

    Args:
        what: loads them, for errors.
        name: as of `read_settings`; with safetensors.
        prefix: of their names.

    Raises:
        ConfigError: they can't be read, or there are none.
    """
    from safetensors import safe_open

    found: dict[str, Tensor] = {}
    with loading(what, name):
        for file in _files(located(name), prefix):
            with safe_open(file, framework="pt") as opened:
                for key in opened.keys():  # noqa: SIM118 - not a mapping
                    if key.startswith(prefix):
                        found[key.removeprefix(prefix)] = opened.get_tensor(key).float()
    if not found:
        raise ConfigError(f"{what} {name!r} has no tensors {prefix}*: it is another kind of model; name one that has")
    return found


def fill(module: nn.Module, tensors: Mapping[str, Tensor], what: str, name: str) -> None:
    """Loads tensors into a module that has all of them and no others.

    Raises:
        ConfigError: names or shapes differ.
    """
    own = {key: list(tensor.shape) for key, tensor in module.state_dict().items()}
    there = {key: list(tensor.shape) for key, tensor in tensors.items()}
    wrong = [
        f"{key} is {there.get(key, 'not')} there and {own.get(key, 'not')} here"
        for key in {**own, **there}
        if own.get(key) != there.get(key)
    ]
    if wrong:
        more = f", and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ConfigError(f"{what} {name!r} doesn't fit: {'; '.join(wrong[:5])}{more}")
    module.load_state_dict(dict(tensors))


def _files(source: str, prefix: str) -> Iterator[Path]:
    """Yields the files that may hold tensors of such names, fetched if need be."""
    from huggingface_hub.errors import EntryNotFoundError

    try:
        index: dict[str, Any] = json.loads(_file(source, _INDEX).read_text(encoding="utf-8"))
    except (FileNotFoundError, EntryNotFoundError):
        yield _file(source, _SINGLE)
        return
    for file in sorted({file for key, file in index["weight_map"].items() if key.startswith(prefix)}):
        yield _file(source, file)


def _file(source: str, name: str) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(source) / name if Path(source).is_dir() else Path(hf_hub_download(source, name))
