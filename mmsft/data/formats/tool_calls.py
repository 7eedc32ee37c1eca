"""Reads the functions that a row offers and the calls that its assistant makes."""

from collections.abc import Mapping
from typing import Any

from mmsft.data.formats.fields import find, mapping, parsed, require, show
from mmsft.errors import DataError
from mmsft.types import Record, ToolCall


def read_tools(record: Record, row: str) -> tuple[Mapping[str, Any], ...]:
    """Reads the column ``tools`` (or ``functions``): schemas, as a list, a single one, or JSON of these.

    A bare schema is wrapped as ``{"type": "function", "function": schema}``, which is what chat templates expect.

    Raises:
        DataError: it isn't a list of objects, or one has no name.
    """
    value = find(record, ("tools", "functions"), row)
    if value is None or value == "":
        return ()
    value = parsed(value, f"{row}: tools")
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list | tuple):
        raise DataError(f"{row}: tools must be a list of schemas, got {show(value)}")
    return tuple(_tool(tool, f"{row}: tool {number}") for number, tool in enumerate(value, 1))


def _tool(value: Any, where: str) -> Mapping[str, Any]:
    tool = mapping(parsed(value, where), where)
    schema = tool.get("function")
    if schema is None:
        tool, schema = {"type": "function", "function": tool}, tool
    _name(mapping(schema, where), where)
    return tool


def read_calls(value: Any, where: str) -> tuple[ToolCall, ...]:
    """Reads one call or a list of them, as objects or as JSON.

    A call is ``{"name": ..., "arguments": ...}``, alone or under ``function`` as OpenAI has it; the arguments are an
    object or a JSON string of one.

    Raises:
        DataError: it isn't that.
    """
    value = parsed(value, where)
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list | tuple) or not value:
        raise DataError(f"{where}: expected a call with 'name' and 'arguments', or a list of calls, got {show(value)}")
    return tuple(_call(call, where) for call in value)


def _call(value: Any, where: str) -> ToolCall:
    outer = mapping(parsed(value, where), where)
    inner = outer.get("function")
    call = outer if inner is None else mapping(inner, where)
    name = _name(call, where)
    arguments = parsed(find(call, ("arguments", "parameters"), where) or {}, f"{where}: arguments of {name}")
    identifier = outer.get("id")
    if identifier is not None and not isinstance(identifier, str):
        raise DataError(f"{where}: the id of a call of {name} must be a string, got {show(identifier)}")
    return ToolCall(name, mapping(arguments, f"{where}: arguments of {name}"), identifier)


def _name(function: Mapping[str, Any], where: str) -> str:
    name = require(function, ("name",), where)
    if not isinstance(name, str) or not name:
        raise DataError(f"{where}: a function's name must be a string that isn't empty, got {show(name)}")
    return name
