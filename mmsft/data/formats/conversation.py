"""mmsft's own format: a conversation as it is, as `mmsft data build` writes it into shards."""

from collections.abc import Mapping
from typing import Any, Final

from mmsft.data.formats.fields import HEAVIEST, find, items, mapping, require, show, text
from mmsft.data.formats.media_tags import read_media
from mmsft.data.formats.tool_calls import read_calls
from mmsft.errors import DataError
from mmsft.types import PREVIOUS, ROOT, Conversation, Media, Part, Record, Role, Text, ToolCall, Turn

_ROLES: Final[Mapping[str, Role]] = {"system": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
_OPTIONAL: Final = ("weight", "parent", "reasoning", "name", "rank")


def conversation(record: Record, row: str) -> Conversation:
    """Reads ``{"turns": [{"role": "user", "parts": [{"text": "…"}, {"media": "image", "file": "0.jpg"}]}, …]}``.

    A medium's file is a path, or, in a shard, the suffix of one of the row's own files. Turns may state what
    `mmsft.types.Turn` has: ``weight``, ``parent``, ``reasoning``, ``tool_calls``, ``name``, ``rank`` and ``tags``.

    Raises:
        DataError: the row isn't of this form.
    """
    files = record.get("__members__") or {}
    listed = items(require(record, ("turns",), row), f"{row}: turns")
    turns = tuple(_turn(value, files, f"{row}: turn {number}") for number, value in enumerate(listed, 1))
    if not any(turn.role == "assistant" for turn in turns):
        raise DataError(f"{row}: no assistant turn, so there is nothing to learn; add the answer, or remove the row")
    tags = _tags(record, row)
    tools = find(record, ("tools",), row) or ()
    if not isinstance(tools, list | tuple) or not all(isinstance(tool, Mapping) for tool in tools):
        raise DataError(f"{row}: tools must be a list of objects, got {show(tools)}")
    return Conversation(row, turns, tags, tuple(tools), dict(_mapping(record, "template_kwargs", row)))


def written(talk: Conversation, files: Mapping[Media, str]) -> dict[str, Any]:
    """Returns the row that `conversation` reads as the conversation.

    Args:
        talk: the conversation.
        files: what is written for each of its media.
    """
    whole: dict[str, Any] = {"turns": [_written(turn, files) for turn in talk.turns]}
    others = {"tags": dict(talk.tags), "tools": list(talk.tools), "template_kwargs": dict(talk.template_kwargs)}
    return whole | {name: value for name, value in others.items() if value}


def _written(turn: Turn, files: Mapping[Media, str]) -> dict[str, Any]:
    parts = [_part_written(part, files) for part in turn.parts]
    plain = Turn(turn.role, turn.parts)
    stated = {name: getattr(turn, name) for name in _OPTIONAL if getattr(turn, name) != getattr(plain, name)}
    if turn.tool_calls:
        stated["tool_calls"] = [_call_written(call) for call in turn.tool_calls]
    if turn.tags:
        stated["tags"] = dict(turn.tags)
    return {"role": turn.role, "parts": parts, **stated}


def _part_written(part: Part, files: Mapping[Media, str]) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"text": part.text}
    return {"media": part.modality, "file": files[part], **({"options": dict(part.options)} if part.options else {})}


def _call_written(call: ToolCall) -> dict[str, Any]:
    return {"name": call.name, "arguments": dict(call.arguments), **({"id": call.id} if call.id else {})}


def _turn(value: Any, files: Mapping[str, str], where: str) -> Turn:
    item = mapping(value, where)
    role = text(require(item, ("role",), where), where)
    if role not in _ROLES:
        raise DataError(f"{where}: role {show(role)}; there are {', '.join(_ROLES)}")
    parts = item.get("parts") or []
    if not isinstance(parts, list | tuple):
        raise DataError(f"{where}: parts must be a list, got {show(parts)}")
    calls = find(item, ("tool_calls",), where)
    parent = _whole(item, "parent", ROOT, where, PREVIOUS)
    if role in ("user", "assistant") and not parts and not calls:
        raise DataError(f"{where} ({role}) is empty; fill it, or remove the turn or the row")
    return Turn(
        _ROLES[role],
        tuple(_part(part, files, f"{where}, part {number}") for number, part in enumerate(parts, 1)),
        weight=_weight(item, where),
        parent=PREVIOUS if parent is None else parent,
        reasoning=_said(item, "reasoning", where),
        tool_calls=tuple(read_calls(calls, where)) if calls else (),
        name=_said(item, "name", where),
        rank=_whole(item, "rank", 0, where, None),
        tags=tuple(sorted(_tags(item, where).items())),
    )


def _part(value: Any, files: Mapping[str, str], where: str) -> Part:
    part = mapping(value, where)
    if "text" in part:
        return Text(text(part["text"], where))
    modality = text(require(part, ("media",), where), where)
    file = require(part, ("file",), where)
    known = files.get(file, file) if isinstance(file, str) else file
    return read_media(modality, known, where, _mapping(part, "options", where))


def _mapping(item: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    value = find(item, (name,), where)
    return {} if value is None else mapping(value, f"{where}: {name}")


def _tags(item: Mapping[str, Any], where: str) -> dict[str, str]:
    return {str(name): text(value, f"{where}: tag {name}") for name, value in _mapping(item, "tags", where).items()}


def _said(item: Mapping[str, Any], name: str, where: str) -> str | None:
    value = find(item, (name,), where)
    return None if value is None else text(value, f"{where}: {name}")


def _weight(item: Mapping[str, Any], where: str) -> float:
    value = item.get("weight", 1.0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= HEAVIEST:
        raise DataError(f"{where}: weight must be a number from 0 to {HEAVIEST:,}, got {show(value)}")
    return float(value)


def _whole(item: Mapping[str, Any], name: str, least: int, where: str, default: int | None) -> int | None:
    value = item.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise DataError(f"{where}: {name} must be a whole number from {least} up, got {show(value)}")
    return int(value)
