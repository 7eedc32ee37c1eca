"""Makes a conversation of a row's list of turns; the formats share it and differ in where they find the list."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mmsft.data.formats.fields import find, items, mapping, parsed, text
from mmsft.data.formats.media_tags import MediaTags
from mmsft.data.formats.tool_calls import read_tools
from mmsft.data.formats.turns import read_turn
from mmsft.errors import DataError
from mmsft.types import Conversation, Record, Turn


def read_dialogue(record: Record, row: str, listed: Any) -> Conversation:
    """Reads a list of turns and the columns that go with it: files, ``system``, ``tools``, ``chat_template_kwargs``.

    An assistant's turn before the first user's has no question to answer: it stays, as context with weight 0.

    Args:
        record: the row.
        row: its id.
        listed: what the row holds as its turns.

    Raises:
        DataError: a turn can't be read or is empty, tags and files differ in number, or no assistant turn is there.
    """
    if record.get("chosen") is not None and record.get("rejected") is not None:
        raise DataError(
            f"{row}: has 'chosen' and 'rejected' answers, a preference pair; its answers aren't in the turns"
        )
    tags = MediaTags(record, row)
    system = _system(record, row, tags)
    listed = items(listed, f"{row}: turns")
    turns = [read_turn(item, f"{row}: turn {number} of {len(listed)}", tags) for number, item in enumerate(listed, 1)]
    turns = _named(turns, listed)
    tags.check()
    if system and any(turn.role == "system" for turn in turns[:1]):
        if turns[0].parts != system.parts:
            raise DataError(f"{row}: the column 'system' and the system turn differ; keep one")
    elif system:
        turns.insert(0, system)
    if not any(turn.role == "assistant" for turn in turns):
        raise DataError(f"{row}: no assistant turn, so there is nothing to learn; add the answer, or remove the row")
    return Conversation(row, _settled(turns), tools=read_tools(record, row), template_kwargs=_kwargs(record, row))


def _system(record: Record, row: str, tags: MediaTags) -> Turn | None:
    value = find(record, ("system", "system_prompt"), row)
    if value is None or value == "":
        return None
    return Turn("system", tags.split(text(value, f"{row}: system")))


def _kwargs(record: Record, row: str) -> dict[str, Any]:
    where = f"{row}: chat_template_kwargs"
    value = parsed(find(record, ("chat_template_kwargs",), row), where)
    return {} if value is None else dict(mapping(value, where))


def _named(turns: Sequence[Turn], listed: Sequence[Mapping[str, Any]]) -> list[Turn]:
    """Names the results of tools after their functions: by their own ``name``, or by the call whose id they quote."""
    called = {call.id: call.name for turn in turns for call in turn.tool_calls if call.id}
    names = [item.get("name") or called.get(str(item.get("tool_call_id"))) for item in listed]
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
