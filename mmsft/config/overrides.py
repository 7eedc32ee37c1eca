"""Dotted overrides from the command line: ``stages.align.train.decoder.lora.lr=1e-4``."""

from typing import Any, get_args, get_origin

from mmsft.config.document import parse_yaml
from mmsft.config.origins import COMMAND_LINE, Key, Origins, dotted, item_numbers
from mmsft.config.schema import is_model, plain, type_at
from mmsft.config.wording import kind_of


def override(raw: dict[str, Any], text: str, origins: Origins, problems: list[str]) -> None:
    """Sets one value.

    Args:
        raw: the config's plain values, changed in place.
        text: ``dotted.key=value``; the value is YAML, a list's items go by number or by name.
        origins: takes ``command line`` for the value.
        problems: takes what is wrong with the override.
    """
    name, equals, value = text.partition("=")
    try:
        if not equals or not all(name.split(".")):
            raise ValueError("an override is key=value, e.g. seed=1 or stages.align.duration='100 steps'")
        parsed = parse_yaml(value)
        container, key = _place(raw, name.split("."), origins)
    except ValueError as error:
        problems.append(f"{COMMAND_LINE}: {text!r}: {error}")
        return
    container[key[-1]] = parsed
    origins.restate(key, parsed)


def _place(raw: dict[str, Any], parts: list[str], origins: Origins) -> tuple[Any, Key]:
    """Returns the mapping or list that holds the value and the value's key; what is missing on the way is made."""
    at: Any = raw
    key: Key = ()
    while True:
        name, width = _step(at, key, parts, dotted(key, raw))
        key, parts = (*key, name), parts[width:]
        if not parts:
            return at, key
        if isinstance(at, dict) and at.get(name) is None:
            at[name] = {}
            origins.of[key] = COMMAND_LINE
        at = at[name]


def _step(at: Any, key: Key, parts: list[str], where: str) -> tuple[str | int, int]:
    """Returns the next name or number, and how many of the dotted parts it takes: names have dots themselves."""
    if not isinstance(at, dict | list):
        raise ValueError(f"{where} is {kind_of(at)} and has no {parts[0]!r}")
    known: dict[str, str | int] = {name: name for name in at} if isinstance(at, dict) else item_numbers(at)
    for width in range(len(parts), 0, -1):
        if (name := ".".join(parts[:width])) in known:
            return known[name], width
    if isinstance(at, list):
        names = ", ".join(name for name in known if not name.isdigit()) or f"0 to {len(at) - 1}"
        raise ValueError(f"no {parts[0]!r} in {where}; there are {names}" if at else f"{where} is empty")
    width = _new_name_width(key, parts)
    return ".".join(parts[:width]), width


def _new_name_width(key: Key, parts: list[str]) -> int:
    """A new entry of `train` has dots in its name: the name ends before a setting of the entry."""
    at = type_at(key)
    entry = plain(get_args(at)[1]) if get_origin(at) is dict else None
    if not is_model(entry):
        return 1
    return next((width for width in range(1, len(parts)) if parts[width] in entry.model_fields), len(parts))
