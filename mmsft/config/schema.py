"""What the settings' types say about a place in a config."""

from types import NoneType, UnionType
from typing import Annotated, Any, TypeGuard, Union, get_args, get_origin

from pydantic import BaseModel

from mmsft.config.origins import Key
from mmsft.config.run import RunConfig


def known_keys(key: Key) -> list[str]:
    """Returns the settings that a place takes; empty where any name is fine, or the place takes no mapping."""
    at = type_at(key)
    return list(at.model_fields) if is_model(at) else []


def type_at(key: Key) -> Any:
    """Returns the type of the value under `key`, without ``| None`` and constraints; None where there is none."""
    at: Any = RunConfig
    for part in key:
        at = plain(_inside(at, part))
    return at


def is_model(value: Any) -> TypeGuard[type[BaseModel]]:
    """Tells whether a type is one of the config's models."""
    return isinstance(value, type) and issubclass(value, BaseModel)


def plain(annotation: Any) -> Any:
    """Returns a type without its constraints and without ``| None``."""
    if get_origin(annotation) is Annotated:
        return plain(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        others = [arg for arg in get_args(annotation) if arg is not NoneType]
        return plain(others[0]) if len(others) == 1 else annotation
    return annotation


def _inside(at: Any, part: str | int) -> Any:
    if is_model(at):
        return at.model_fields[part].annotation if part in at.model_fields else None
    arguments = get_args(at)
    if get_origin(at) is dict:
        return arguments[1]
    if get_origin(at) is tuple and isinstance(part, int):
        return arguments[0] if arguments[-1] is Ellipsis else arguments[part]
    return None
