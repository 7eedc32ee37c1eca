"""Reads single values of a row, and says place, value and way out where one isn't what it should be."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from mmsft.data.labels import Hidden, Label
from mmsft.errors import DataError, suggest

HEAVIEST: Final = 1_000_000
"""The largest weight of a turn: the loss is summed in fp32, where a larger one leaves nothing of the others."""


def find(record: Mapping[str, Any], names: Sequence[str], where: str) -> Any:
    """Returns the value under the one of several names that the row uses, or None; a null counts as absent.

    Raises:
        DataError: two names hold different values.
    """
    present = [name for name in names if record.get(name) is not None]
    for other in present[1:]:
        if record[other] != record[present[0]]:
            raise DataError(f"{where}: {present[0]!r} and {other!r} differ, and either could be meant; keep one")
    return record[present[0]] if present else None


def require(record: Mapping[str, Any], names: Sequence[str], where: str) -> Any:
    """Returns what `find` finds.

    Raises:
        DataError: none of the names is there, or two hold different values.
    """
    value = find(record, names, where)
    if value is not None:
        return value
    wanted = " or ".join(repr(name) for name in names)
    null = [name for name in names if name in record]
    if null:
        raise DataError(f"{where}: {null[0]!r} is null; fill it, or remove the row")
    have = ", ".join(map(str, record)) or "none"
    raise DataError(f"{where}: no {wanted}{suggest(names[0], map(str, record))}; keys here: {have}")


def text(value: Any, where: str) -> str:
    """Returns a text; a number, as mixed JSON columns hold them, becomes its digits, and a class its name.

    Raises:
        DataError: it is null, a truth value, a list or an object, which could be written in several ways, or a class
            that isn't told.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, Label):
        return value.name
    if isinstance(value, Hidden):
        raise DataError(
            f"{where}: the data set doesn't tell its class, which is {value}; leave such rows out by `where`"
        )
    if isinstance(value, int | float) and not isinstance(value, bool) and -math.inf < value < math.inf:
        return str(value)
    raise DataError(f"{where}: expected text, got {show(value)}; write it as a string")


def with_more(record: Mapping[str, Any], names: Sequence[str], more: str, where: str) -> str:
    """Returns an instruction, and what goes with it on the next line, unless that says nothing.

    Args:
        record: the row.
        names: of the instruction's column.
        more: name of the other column.
        where: the row's id.

    Raises:
        DataError: there is no instruction, or one of them isn't a text.
    """
    said = text(require(record, names, where), f"{where}: {names[0]}")
    value = find(record, (more,), where)
    given = "" if value is None else text(value, f"{where}: {more}")
    return f"{said}\n{given}" if given.strip() else said


def mapping(value: Any, where: str) -> Mapping[str, Any]:
    """Returns an object.

    Raises:
        DataError: it isn't one.
    """
    if not isinstance(value, Mapping):
        raise DataError(f"{where}: expected an object, got {show(value)}")
    return value


def items(value: Any, where: str) -> Sequence[Any]:
    """Returns a list that isn't empty.

    Raises:
        DataError: it isn't a list, or empty.
    """
    if not isinstance(value, list | tuple):
        raise DataError(f"{where}: expected a list, got {show(value)}")
    if not value:
        raise DataError(f"{where}: the list is empty; remove the row")
    return value


def parsed(value: Any, where: str) -> Any:
    """Returns what a JSON string holds; another value as it is.

    Raises:
        DataError: a string that isn't JSON.
    """
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not valid JSON: {error}: {show(value)}") from None


def listed(value: Any, where: str) -> Any:
    """Returns the list whose JSON a text is, as columns of CSV hold lists; another value as it is.

    Raises:
        DataError: a text that begins like a list and isn't one.
    """
    return parsed(value, where) if isinstance(value, str) and value.lstrip().startswith("[") else value


def show(value: Any) -> str:
    """Returns a value's type and beginning, for errors."""
    if value is None:
        return "null"
    shown = repr(value)
    return f"{type(value).__name__} {shown if len(shown) <= 60 else f'{shown[:57]}...'}"
