"""Data formats: each is one function from a row to a conversation."""

from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

from mmsft.config.kinds import imported
from mmsft.data.formats.alpaca import alpaca
from mmsft.data.formats.llava import llava
from mmsft.data.formats.messages import messages
from mmsft.data.formats.openassistant import openassistant
from mmsft.data.formats.sharegpt import sharegpt
from mmsft.errors import ConfigError, suggest
from mmsft.types import Conversation, Record

Format: TypeAlias = Callable[[Record, str], Conversation]
"""From a row and its id to a conversation; raises DataError for a row that it can't read."""

FORMATS: Final[Mapping[str, Format]] = {
    "alpaca": alpaca,
    "llava": llava,
    "messages": messages,
    "openassistant": openassistant,
    "sharegpt": sharegpt,
}

__all__ = ["FORMATS", "Format", "alpaca", "format_named", "llava", "messages", "openassistant", "sharegpt"]


def format_named(name: str) -> Format:
    """Returns the format that a source names: a key of `FORMATS`, or ``my_pkg.module:function``.

    Raises:
        ConfigError: there is none.
    """
    if name in FORMATS:
        return FORMATS[name]
    if ":" not in name:
        known = ", ".join(FORMATS)
        raise ConfigError(
            f"unknown format {name!r}{suggest(name, FORMATS)}; known: {known}, or one of yours, my_pkg.module:function"
        )
    try:
        function = imported(name, f"format {name!r}")
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if not callable(function):
        raise ConfigError(f"format {name!r}: not a function but {type(function).__name__}")
    return function
