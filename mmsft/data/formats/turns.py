"""Reads one turn of a dialogue, in the spellings that data sets in the wild use."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeAlias

from mmsft.data.formats.fields import HEAVIEST, find, mapping, require, show, text
from mmsft.data.formats.media_tags import COLUMNS, REFERENCES, MediaTags, read_media
from mmsft.data.formats.tool_calls import read_calls
from mmsft.errors import DataError, suggest
from mmsft.types import Media, Part, Role, Text, ToolCall, Turn

Speaker: TypeAlias = Role | Literal["function_call"]
SPEAKERS: Final[Mapping[str, Speaker]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "claude": "assistant",
    "function_call": "function_call",
    "tool_call": "function_call",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "ipython": "tool",
}
"""Role names in lower case. A function_call is an assistant's turn whose content is a call."""

ROLE_KEYS: Final = ("role", "from")
CONTENT_KEYS: Final = ("content", "value")
WEIGHT_KEYS: Final = ("weight", "loss_weight", "loss", "train")
SCALE_KEYS: Final = ("loss_scale",)
"""ms-swift's, beside which ``loss`` says whether the turn is learned at all."""
REASONING_KEYS: Final = ("reasoning_content", "reasoning", "thinking")
_THINK, _END = "<think>", "</think>"
_TEXT_TYPES = ("text", "input_text", "output_text")
_REASONING_TYPES = ("reasoning", "thinking")
_MEDIA_TYPES = {
    **{modality: modality for modality in COLUMNS},
    **{
        "image_url": "image",
        "input_image": "image",
        "video_url": "video",
        "audio_url": "audio",
        "input_audio": "audio",
    },
}


@dataclass(frozen=True, slots=True)
class _Said:
    """What the content of a turn holds."""

    parts: tuple[Part, ...] = ()
    reasoning: str | None = None
    calls: tuple[ToolCall, ...] = ()


def read_turn(value: Any, where: str, tags: MediaTags) -> Turn:
    """Reads one turn.

    Thinking that stands before an answer as ``<think>…</think>`` becomes `Turn.reasoning`, without the line breaks
    around it: the chat template decides how it is written.

    Args:
        value: an object with ``role`` and ``content``, or ``from`` and ``value``.
        where: the turn's place, for errors.
        tags: the row's files.

    Raises:
        DataError: it can't be read.
    """
    item = mapping(value, where)
    who = speaker(item, where)
    where = f"{where} ({who})"
    if who == "assistant" or who == "function_call":  # noqa: PLR1714 - mypy narrows by these
        said = _assistant(item, who, where, tags)
        turn = Turn("assistant", said.parts, reasoning=said.reasoning, tool_calls=said.calls)
    else:
        turn = Turn(who, _other(item, who, where, tags))
    return replace(turn, weight=_weight(item, WEIGHT_KEYS, where) * _weight(item, SCALE_KEYS, where))


def speaker(item: Mapping[str, Any], where: str) -> Speaker:
    """Returns who says a turn.

    Raises:
        DataError: it doesn't say, or the name is unknown.
    """
    name = text(require(item, ROLE_KEYS, where), f"{where}: role")
    found = known_speaker(item)
    if found is None:
        raise DataError(
            f"{where}: unknown role {show(name)}{suggest(name.lower(), SPEAKERS)}; known: {', '.join(SPEAKERS)}"
        )
    return found


def known_speaker(item: Any) -> Speaker | None:
    """Returns who says a turn, as rows write one; None if it doesn't say, or the name is unknown."""
    names = [item[key] for key in ROLE_KEYS if item.get(key) is not None] if isinstance(item, Mapping) else []
    return SPEAKERS.get(names[0].strip().lower()) if names and isinstance(names[0], str) else None


def _weight(item: Mapping[str, Any], names: Sequence[str], where: str) -> float:
    value = find(item, names, where)
    if value is None:
        return 1.0
    if not isinstance(value, int | float) or not 0 <= value <= HEAVIEST:
        raise DataError(
            f"{where}: a turn's weight must be true, false or a number from 0 to {HEAVIEST:,}, got {show(value)}"
        )
    return float(value)


def _other(item: Mapping[str, Any], speaker: Speaker, where: str, tags: MediaTags) -> tuple[Part, ...]:
    content = require(item, CONTENT_KEYS, where)
    if speaker == "tool" and _is_data(content):
        content = json.dumps(content, ensure_ascii=False, default=str)
    said = _read(content, where, tags)
    if said.reasoning is not None or said.calls:
        raise DataError(f"{where}: only an assistant reasons and calls functions; mend the role or the content")
    return said.parts


def _is_data(content: Any) -> bool:
    """Tells a function's result that wasn't written as text from a list of content parts."""
    if isinstance(content, list | tuple):
        return not all(isinstance(part, Mapping) and "type" in part for part in content)
    return isinstance(content, Mapping)


def _assistant(item: Mapping[str, Any], speaker: Speaker, where: str, tags: MediaTags) -> _Said:
    calls = find(item, ("tool_calls", "function_call"), where) or ()
    content = find(item, CONTENT_KEYS, where)
    if content is None and calls:
        content = ""
    elif content is None:
        require(item, CONTENT_KEYS, where)
    inline, content = _think(content, where) if isinstance(content, str) else (None, content)
    said = _Said(calls=read_calls(content, where)) if speaker == "function_call" else _read(content, where, tags)
    stated = find(item, REASONING_KEYS, where)
    reasons = [reason for reason in (text(stated, where) if stated else None, inline, said.reasoning) if reason]
    if len(reasons) > 1:
        raise DataError(f"{where}: its reasoning is given twice, in the content and apart from it; keep one")
    # An empty block of thinking is kept as such: templates write it for answers without thinking.
    reasoning = reasons[0] if reasons else inline
    return _Said(said.parts, reasoning, (*(read_calls(calls, where) if calls else ()), *said.calls))


def _think(content: str, where: str) -> tuple[str | None, str]:
    """Splits ``<think>…</think>`` from the answer behind it."""
    start = content.lstrip()
    if not start.startswith(_THINK):
        return None, content
    reasoning, end, answer = start.removeprefix(_THINK).partition(_END)
    if not end:
        raise DataError(f"{where}: opens {_THINK} and doesn't close it; add {_END}, or remove the row")
    return reasoning.strip("\r\n"), answer.lstrip("\r\n")


def _read(content: Any, where: str, tags: MediaTags) -> _Said:
    """Reads content: text, in which tags stand for files, or a list of parts, in which text is only text."""
    if not isinstance(content, list | tuple):
        return _Said(tags.split(text(content, where)))
    said = _Said()
    for number, part in enumerate(content, 1):
        said = _joined(said, _part(part, f"{where}, part {number}", tags), where)
    if said.parts and isinstance(said.parts[0], Text) and said.reasoning is None:
        reasoning, answer = _think(said.parts[0].text, where)
        if reasoning is not None:
            rest = (Text(answer),) if answer else ()
            said = _Said((*rest, *said.parts[1:]), reasoning, said.calls)
    return said


def _joined(one: _Said, two: _Said, where: str) -> _Said:
    if one.reasoning is not None and two.reasoning is not None:
        raise DataError(f"{where}: has two parts of reasoning; a turn reasons once, before it answers")
    if two.reasoning is not None and (one.parts or one.calls):
        raise DataError(f"{where}: reasons after its answer began; put the reasoning first")
    reasoning = one.reasoning if two.reasoning is None else two.reasoning
    return _Said(one.parts + two.parts, reasoning, one.calls + two.calls)


def _part(value: Any, where: str, tags: MediaTags) -> _Said:
    part = mapping(value, where)
    kind = text(require(part, ("type",), where), where)
    if kind in _TEXT_TYPES:
        return _Said((Text(text(require(part, ("text", "value", "content"), where), where)),))
    if kind in _REASONING_TYPES:
        return _Said(reasoning=text(require(part, (kind, "value", "text", "content"), where), where))
    if kind == "tool_call":
        return _Said(calls=read_calls(require(part, ("tool_call", "value"), where), where))
    modality = _MEDIA_TYPES.get(kind, kind)
    if kind not in _MEDIA_TYPES and part.get(kind) is None:
        known = sorted({*_TEXT_TYPES, *_REASONING_TYPES, "tool_call", *_MEDIA_TYPES})
        raise DataError(
            f"{where}: unknown type {show(kind)}{suggest(kind, known)}; known: {', '.join(known)}, "
            f'and the name of a modality, with its file: {{"type": "{kind}", "{kind}": "FILE"}}'
        )
    return _Said((_medium(part, kind, modality, where, tags),))


def _medium(part: Mapping[str, Any], kind: str, modality: str, where: str, tags: MediaTags) -> Media:
    value = find(part, tuple(dict.fromkeys((kind, modality, "value"))), where)
    if value is not None:
        return read_media(modality, value, where, part)
    if any(part.get(name) is not None for name in REFERENCES):
        return read_media(modality, part, where)
    # A part that only says "here is an image" takes the next file of the row's column.
    return tags.next(modality)
