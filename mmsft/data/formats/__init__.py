"""Data formats: each is one function from a row to a conversation."""

import importlib
from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

from mmsft.data.formats.alpaca import alpaca
from mmsft.data.formats.llava import llava
from mmsft.data.formats.messages import messages
from mmsft.data.formats.sharegpt import sharegpt
from mmsft.errors import ConfigError, suggest
from mmsft.types import Conversation, Record

Format: TypeAlias = Callable[[Record, str], Conversation]
"""From a row and its id to a conversation; raises DataError for a row that it can't read."""

FORMATS: Final[Mapping[str, Format]] = {
    "alpaca": alpaca,
    "llava": llava,
    "messages": messages,
    "sharegpt": sharegpt,
}

__all__ = ["FORMATS", "Format", "alpaca", "format_named", "llava", "messages", "sharegpt"]


def format_named(name: str) -> Format:
    """Returns the format that a source names: a key of `FORMATS`, or ``my_pkg.module:function``.

    Raises:
        ConfigError: there is none.
    """
    if name in FORMATS:
        return FORMATS[name]
    module_name, colon, function_name = name.partition(":")
    if not colon:
        known = ", ".join(FORMATS)
        raise ConfigError(
            f"unknown format {name!r}{suggest(name, FORMATS)}; known: {known}, or one of yours, my_pkg.module:function"
        )
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"format {name!r}: {module_name or 'a module without a name'} can't be imported ({error}); "
            "is it installed, or on PYTHONPATH?"
        ) from None
    function: object = getattr(module, function_name, None)
    if not callable(function):
        raise ConfigError(
            f"format {name!r}: {module_name} has no function {function_name!r}{suggest(function_name, dir(module))}"
        )
    return function
