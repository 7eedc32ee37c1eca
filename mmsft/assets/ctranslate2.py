"""Reads the tensors of a model that CTranslate2 has converted (its `model.bin`, version 6)."""

import struct
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from mmsft.errors import ConfigError

if TYPE_CHECKING:
    import torch

_VERSION: Final = 6
_TYPES: Final = {0: "float32", 1: "int8", 2: "int16", 3: "int32", 4: "float16", 5: "bfloat16"}


def read_ctranslate2(file: Path) -> "dict[str, torch.Tensor]":
    """Returns the tensors by their names; those that are an alias of another are left out.

    The file is little-endian: a version, the model's class and its revision, then for each tensor its name, shape, type
    and bytes (CTranslate2, ``python/ctranslate2/specs/model_spec.py``).

    Args:
        file: ``model.bin``.

    Raises:
        ConfigError: it is of another version, or cut off.
    """
    with file.open("rb") as source:
        try:
            version = _number(source, "I")
            if version != _VERSION:
                raise ConfigError(f"{file.name}: version {version} of CTranslate2's files, expected {_VERSION}")
            _text(source), _number(source, "I")
            return dict(_tensor(source) for _ in range(_number(source, "I")))
        except (struct.error, KeyError, ValueError, RuntimeError) as error:
            raise ConfigError(f"{file.name}: not a whole model of CTranslate2 ({error}); fetch it again") from error


def _tensor(source: IO[bytes]) -> "tuple[str, torch.Tensor]":
    import torch

    name = _text(source)
    shape = [_number(source, "I") for _ in range(_number(source, "B"))]
    kind = getattr(torch, _TYPES[_number(source, "B")])
    content = bytearray(source.read(_number(source, "I")))
    return name, torch.frombuffer(content, dtype=kind).reshape(shape)


def _text(source: IO[bytes]) -> str:
    return source.read(_number(source, "H")).rstrip(b"\0").decode()


def _number(source: IO[bytes], form: str) -> int:
    value: int = struct.unpack(f"<{form}", source.read(struct.calcsize(form)))[0]
    return value
