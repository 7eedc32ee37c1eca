"""Finds the part that a config chooses by `kind`, and checks its settings."""

import importlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from mmsft.config.values import Spec
from mmsft.config.wording import wrong
from mmsft.errors import ConfigError, suggest


def resolve_kind(kinds: Mapping[str, type], role: type, settings: Mapping[str, Any]) -> Spec:
    """Builds the frozen dataclass that a mapping with a `kind` describes.

    Args:
        kinds: name → dataclass, for the kinds that ship; ``my_pkg.module:Class`` names one of the user's.
        role: the protocol that a part of this kind subclasses, e.g. `Modality`.
        settings: `kind` and the dataclass's own settings.

    Raises:
        ValueError: with all that is wrong: the kind, its keys or their values.
    """
    what, kind = role.__name__.lower(), settings.get("kind")
    if not isinstance(kind, str):
        raise ValueError(f"the {what} is chosen by its `kind`: {', '.join(kinds)}, or my_pkg.module:Class")
    cls = _users(kind, role) if ":" in kind else kinds.get(kind)
    if cls is None:
        raise ValueError(
            f"unknown {what} kind {kind!r}{suggest(kind, kinds)}; known: {', '.join(kinds)}, or my_pkg.module:Class"
        )
    known = [field.name for field in fields(cls) if field.init]
    values = {str(name): value for name, value in settings.items() if name != "kind"}
    problems = [f"unknown key {name!r}{suggest(name, known)}" for name in values if name not in known]
    try:
        part: Any = TypeAdapter(cls).validate_python({name: value for name, value in values.items() if name in known})
    except ValidationError as error:
        problems += [_explain(item) for item in error.errors()]
    except ConfigError as error:
        problems.append(str(error))
    if problems:
        raise ValueError(f"{kind}: {'; '.join(problems)}; settings of {kind}: {', '.join(known) or 'none'}")
    return Spec(kind, part)


def _explain(item: Any) -> str:
    name = ".".join(str(part) for part in item["loc"])
    if item["type"] == "missing":
        return f"{name!r} is required"
    if item["type"] == "unexpected_keyword_argument":
        return f"unknown key {name!r}"
    return f"{name}: {wrong(item)}" if name else wrong(item)


def imported(path: str, where: str) -> object:
    """Returns what ``my_pkg.module:name`` names.

    Args:
        path: the module and the name in it.
        where: begins the message of an error.

    Raises:
        ValueError: there is no such module, or it has no such name.
    """
    module_name, _, name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        raise ValueError(
            f"{where}: {module_name or 'a module without a name'} can't be imported ({error}); "
            "is it installed, in the working directory, or on PYTHONPATH?"
        ) from None
    if not hasattr(module, name):
        raise ValueError(f"{where}: {module_name} has no {name!r}{suggest(name, dir(module))}")
    found: object = getattr(module, name)
    return found


def _users(kind: str, role: type) -> type:
    name = kind.partition(":")[2]
    where = f"{role.__name__.lower()} kind {kind!r}"
    cls = imported(kind, where)
    if not isinstance(cls, type) or not is_dataclass(cls):
        raise ValueError(f"{where}: make {name} a frozen dataclass, so that YAML can state its settings")
    if role not in cls.__mro__:
        raise ValueError(f"{where}: {name} isn't one; subclass mmsft.{role.__name__}")
    lacking = sorted(getattr(cls, "__abstractmethods__", ()))
    if lacking:
        raise ValueError(f"{where}: {name} lacks {', '.join(lacking)}; write what mmsft.{role.__name__} asks for")
    return cls
