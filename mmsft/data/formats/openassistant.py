"""OpenAssistant's conversation trees: each message with its replies, which become the branches of one conversation."""

from collections.abc import Mapping
from typing import Any

from mmsft.data.formats.fields import find, items, mapping, require, show, text
from mmsft.errors import DataError
from mmsft.types import ROOT, Conversation, Record, Role, Text, Turn

_SPEAKERS: Mapping[str, Role] = {"prompter": "user", "assistant": "assistant"}


def openassistant(record: Record, row: str) -> Conversation:
    """Reads ``{"message_tree_id": …, "prompt": {"role": "prompter", "text": …, "replies": [{…}]}}``.

    Messages that were deleted, or that reviewers refused, are left out with all that answers them.

    Raises:
        DataError: the row isn't of this form, a message stands under another than its parent, or no answer is left.
    """
    turns: list[Turn] = []
    seen: set[str] = set()
    pending: list[tuple[Any, int, Any]] = [(require(record, ("prompt",), row), ROOT, None)]
    while pending:
        message, parent, above = pending.pop()
        where = f"{row}: message {len(turns) + 1}"
        node = mapping(message, where)
        number = _placed(node, above, seen, where)
        if node.get("deleted") or node.get("review_result") is False:
            continue
        speaker = text(require(node, ("role",), where), where)
        if speaker not in _SPEAKERS:
            raise DataError(f"{where}: role {show(speaker)}; OpenAssistant's are {' and '.join(_SPEAKERS)}")
        turns.append(Turn(_SPEAKERS[speaker], (Text(text(require(node, ("text",), where), where)),), parent=parent))
        replies = node.get("replies")
        below = items(replies, f"{where}: replies") if replies else ()
        pending += [(reply, len(turns) - 1, number) for reply in reversed(below)]
    if not any(turn.role == "assistant" for turn in turns):
        raise DataError(f"{row}: no answer is left, after deleted and refused messages; remove the row")
    return Conversation(row, tuple(turns))


def _placed(node: Mapping[str, Any], above: Any, seen: set[str], where: str) -> Any:
    """Returns a message's id; checks that it stands under its parent, and once."""
    number, parent = find(node, ("message_id",), where), find(node, ("parent_id",), where)
    if above is not None and parent is not None and parent != above:
        raise DataError(f"{where}: its parent_id is {show(parent)}, and it stands among the replies to {show(above)}")
    if number is not None and str(number) in seen:
        raise DataError(f"{where}: message_id {show(number)} is there twice: a cycle, or a copy; mend the tree")
    seen.add(str(number))
    return number
