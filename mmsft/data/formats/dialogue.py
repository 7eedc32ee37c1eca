"""Makes a conversation of a row's list of turns; the formats share it and differ in where they find the list."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from mmsft.data.formats.fields import find, items, listed, mapping, parsed, text
from mmsft.data.formats.grounding import Boxes
from mmsft.data.formats.media_tags import MediaTags
from mmsft.data.formats.regions import Size
from mmsft.data.formats.tool_calls import read_tools
from mmsft.data.formats.turns import read_turn, speaker
from mmsft.errors import DataError
from mmsft.types import Conversation, Media, Record, Turn


def read_dialogue(
    record: Record,
    row: str,
    said: Any,
    boxes: Boxes = "thousandths",
    size: Callable[[Media], Size] | None = None,
) -> Conversation:
    """Reads a list of turns and the columns that go with it: files, ``system``, ``tools``, ``chat_template_kwargs``.

    An assistant's turn before the first user's has no question to answer: it stays, as context with weight 0. Calls
    that are turns of their own belong to the assistant's turn right before them.

    Args:
        record: the row.
        row: its id.
        said: what the row holds as its turns: a list, or JSON of one.
        boxes: how boxes are written, where the row has ``objects``.
        size: of a picture, for boxes in pixels.

    Raises:
        DataError: a turn can't be read or is empty, tags and files differ in number, or no assistant turn is there.
    """
    if record.get("chosen") is not None and record.get("rejected") is not None:
        raise DataError(
            f"{row}: has 'chosen' and 'rejected' answers, a preference pair; its answers aren't in the turns"
        )
    tags = MediaTags(record, row, boxes, size)
    return _read(record, row, [turn_list(said, row)], tags).conversation


def read_answered(record: Record, row: str, prompt: Sequence[Any], answer: Sequence[Any]) -> "Answered":
    """Reads turns like `read_dialogue`, of which the last ones are one of several answers, and stay apart.

    Raises:
        DataError: as `read_dialogue`.
    """
    return _read(record, row, [prompt, answer], MediaTags(record, row))


class Answered(NamedTuple):
    """A dialogue, and the number of its turns that come before the answer."""

    conversation: Conversation
    shared: int


def _read(record: Record, row: str, parts: Sequence[Sequence[Any]], tags: MediaTags) -> Answered:
    system = _system(record, row, tags)
    turns, shared = _turns(parts, row, tags)
    tags.check()
    if system and any(turn.role == "system" for turn in turns[:1]):
        if turns[0].parts != system.parts:
            raise DataError(f"{row}: the column 'system' and the system turn differ; keep one")
    elif system:
        turns.insert(0, system)
        shared += 1
    if not any(turn.role == "assistant" for turn in turns):
        raise DataError(f"{row}: no assistant turn, so there is nothing to learn; add the answer, or remove the row")
    talk = Conversation(row, _settled(turns), tools=read_tools(record, row), template_kwargs=_kwargs(record, row))
    return Answered(talk, shared)


def turn_list(value: Any, row: str) -> Sequence[Any]:
    """Returns turns as a row lists them.

    Raises:
        DataError: it is neither a list nor JSON of one, or empty.
    """
    where = f"{row}: turns"
    return items(listed(value, where), where)


def _turns(parts: Sequence[Sequence[Any]], row: str, tags: MediaTags) -> tuple[list[Turn], int]:
    """Returns the turns, and how many come before the last part."""
    said = [item for part in parts for item in part]
    last = len(said) - len(parts[-1])
    turns: list[Turn] = []
    firsts: list[int] = []
    for number, item in enumerate(said):
        where = _place(row, number, said)
        turn = read_turn(item, where, tags)
        calls = number != last and speaker(item, where) == "function_call"
        if calls and turns and _continues(turns[-1], turn):
            turns[-1] = replace(turns[-1], tool_calls=turns[-1].tool_calls + turn.tool_calls)
        else:
            turns.append(turn)
            firsts.append(number)
    for turn, number in zip(turns, firsts, strict=True):
        if turn.role in {"user", "assistant"} and not (turn.text.strip() or turn.media or turn.tool_calls):
            raise DataError(
                f"{_place(row, number, said)} ({turn.role}) is empty; fill it, or remove the turn or the row"
            )
    return _named(turns, [said[number] for number in firsts]), sum(number < last for number in firsts)


def _place(row: str, number: int, said: Sequence[Any]) -> str:
    return f"{row}: turn {number + 1} of {len(said)}"


def _continues(before: Turn, call: Turn) -> bool:
    """Tells whether a call that is a turn of its own is what the assistant does at the end of the turn before."""
    plain = call.reasoning is None and not call.parts
    return plain and before.role == call.role == "assistant" and before.weight == call.weight


def _system(record: Record, row: str, tags: MediaTags) -> Turn | None:
    value = find(record, ("system", "system_prompt"), row)
    if value is None or value == "":
        return None
    return Turn("system", tags.split(text(value, f"{row}: system")))


def _kwargs(record: Record, row: str) -> dict[str, Any]:
    where = f"{row}: chat_template_kwargs"
    value = parsed(find(record, ("chat_template_kwargs",), row), where)
    return {} if value is None else dict(mapping(value, where))


def _named(turns: Sequence[Turn], said: Sequence[Mapping[str, Any]]) -> list[Turn]:
    """Names the results of tools after their functions: by their own ``name``, or by the call whose id they quote."""
    called = {call.id: call.name for turn in turns for call in turn.tool_calls if call.id}
    names = [item.get("name") or called.get(str(item.get("tool_call_id"))) for item in said]
    return [
        replace(turn, name=str(name)) if turn.role == "tool" and name else turn
        for turn, name in zip(turns, names, strict=True)
    ]


def _settled(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """Takes the weight from answers without a question."""
    asked = next((index for index, turn in enumerate(turns) if turn.role == "user"), len(turns))
    return tuple(
        replace(turn, weight=0.0) if turn.role == "assistant" and index < asked else turn
        for index, turn in enumerate(turns)
    )
