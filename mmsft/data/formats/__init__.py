"""Data formats: each is one function from a row to a conversation."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, TypeAlias, get_type_hints

from pydantic import TypeAdapter, ValidationError

from mmsft.config.kinds import imported
from mmsft.config.wording import wrong
from mmsft.data.formats.alpaca import alpaca
from mmsft.data.formats.baize import baize
from mmsft.data.formats.conversation import conversation
from mmsft.data.formats.dolly import dolly
from mmsft.data.formats.inputs_targets import inputs_targets
from mmsft.data.formats.lamm import lamm
from mmsft.data.formats.llava import llava
from mmsft.data.formats.messages import messages
from mmsft.data.formats.mimic_it import mimic_it
from mmsft.data.formats.multi_instruct import multi_instruct
from mmsft.data.formats.natural_instructions import natural_instructions
from mmsft.data.formats.openassistant import openassistant
from mmsft.data.formats.orca import orca
from mmsft.data.formats.pmc_vqa import pmc_vqa
from mmsft.data.formats.preference import preference, ranked
from mmsft.data.formats.prompt_completion import prompt_completion
from mmsft.data.formats.self_instruct import self_instruct
from mmsft.data.formats.sharegpt import sharegpt
from mmsft.data.formats.unnatural_instructions import unnatural_instructions
from mmsft.errors import ConfigError, suggest
from mmsft.types import Conversation, Record

Format: TypeAlias = Callable[[Record, str], Conversation]
"""From a row and its id to a conversation; raises DataError for a row that it can't read."""

FORMATS: Final[Mapping[str, Callable[..., Conversation]]] = {
    "alpaca": alpaca,
    "baize": baize,
    "conversation": conversation,
    "dolly": dolly,
    "inputs_targets": inputs_targets,
    "lamm": lamm,
    "llava": llava,
    "messages": messages,
    "mimic_it": mimic_it,
    "multi_instruct": multi_instruct,
    "natural_instructions": natural_instructions,
    "openassistant": openassistant,
    "orca": orca,
    "pmc_vqa": pmc_vqa,
    "preference": preference,
    "prompt_completion": prompt_completion,
    "ranked": ranked,
    "self_instruct": self_instruct,
    "sharegpt": sharegpt,
    "unnatural_instructions": unnatural_instructions,
}
"""The formats that ship. Their options are what they take by keyword, but for what each source gives: `GIVEN`."""

GIVEN: Final = ("count", "size")
"""What a format may ask for by keyword: ``count``, the tokens of a text, and ``size``, a picture's width and height."""

IN_COLUMNS: Final = frozenset(
    {"alpaca", "baize", "dolly", "inputs_targets", "llava", "messages", "orca", "prompt_completion", "sharegpt"}
)
"""Formats whose media stand in the columns that `media_in_columns` knows, or in the turns."""

__all__ = [
    "FORMATS",
    "GIVEN",
    "IN_COLUMNS",
    "Format",
    "alpaca",
    "baize",
    "conversation",
    "dolly",
    "format_named",
    "inputs_targets",
    "lamm",
    "llava",
    "messages",
    "mimic_it",
    "multi_instruct",
    "natural_instructions",
    "openassistant",
    "options_of",
    "orca",
    "pmc_vqa",
    "preference",
    "prompt_completion",
    "ranked",
    "self_instruct",
    "sharegpt",
    "unnatural_instructions",
    "with_options",
]


def format_named(name: str) -> Callable[..., Conversation]:
    """Returns the format that a source names: a key of `FORMATS`, or ``my_pkg.module:function``.

    Raises:
        ConfigError: there is none.
    """
    if name in FORMATS:
        return FORMATS[name]
    if ":" not in name:
        known = ", ".join(FORMATS)
        raise ConfigError(
            f"unknown format {name!r}{suggest(name, FORMATS)}; known: auto, {known}, or one of yours, "
            "my_pkg.module:function"
        )
    try:
        function = imported(name, f"format {name!r}")
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if not callable(function):
        raise ConfigError(f"format {name!r}: not a function but {type(function).__name__}")
    return function


def options_of(name: str) -> dict[str, inspect.Parameter]:
    """Returns what a format takes by keyword, by name: its options, and what it asks for of `GIVEN`.

    Raises:
        ConfigError: there is no such format.
    """
    parameters = inspect.signature(format_named(name)).parameters
    return {name: it for name, it in parameters.items() if it.kind is it.KEYWORD_ONLY}


def with_options(name: str, options: Mapping[str, Any], given: Mapping[str, Callable[[], Any]]) -> Format:
    """Returns a format with its options set, and with what it asks for of `given`.

    Args:
        name: as of `format_named`.
        options: the recipe's.
        given: returns what of `GIVEN` a format asks for, by name.

    Raises:
        ConfigError: there is no such format, or an option that it doesn't take; with all that is wrong.
    """
    function = format_named(name)
    parameters = options_of(name).values()
    known = [it.name for it in parameters if it.name not in GIVEN]
    hints = get_type_hints(function)
    bound: dict[str, Any] = {it.name: given[it.name]() for it in parameters if it.name in given}
    problems = []
    for option, value in options.items():
        if option not in known:
            problems.append(f"unknown option {option!r}{suggest(option, known)}")
            continue
        try:
            bound[option] = TypeAdapter(hints.get(option, Any)).validate_python(value, strict=True)
        except ValidationError as error:
            problems += [f"option {option!r}: {wrong(item)}" for item in error.errors()]
    problems += [
        f"option {it.name!r} is required" for it in parameters if it.default is it.empty and it.name not in bound
    ]
    if problems:
        raise ConfigError(f"format {name}: {'; '.join(problems)}; options of {name}: {', '.join(known) or 'none'}")
    return partial(function, **bound) if bound else function
