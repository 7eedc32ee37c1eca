"""OpenAssistant's conversation trees: each message with its replies, which become the branches of one conversation."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmsft.data.formats.fields import find, items, mapping, require, show, text
from mmsft.errors import DataError
from mmsft.types import ROOT, Conversation, Record, Role, Text, Turn

_SPEAKERS: Mapping[str, Role] = {"prompter": "user", "assistant": "assistant"}


def openassistant(record: Record, row: str, *, best: bool = False) -> Conversation:
    """Reads ``{"message_tree_id": …, "prompt": {"role": "prompter", "text": …, "replies": [{…}]}}``.

    Messages that were deleted, or that reviewers refused, are left out with all that answers them.

    Args:
        record: the row.
        row: its id.
        best: of several answers to one message keep the one of the best rank, and those without a rank.

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
        said = Text(text(require(node, ("text",), where), where))
        turns.append(Turn(_SPEAKERS[speaker], (said,), parent=parent, rank=_rank(node, speaker, where)))
        replies = node.get("replies")
        below = items(replies, f"{where}: replies") if replies else ()
        kept = _best(below, where) if best else below
        pending += [(reply, len(turns) - 1, number) for reply in reversed(kept)]
    if not any(turn.role == "assistant" for turn in turns):
        raise DataError(f"{row}: no answer is left, after deleted and refused messages; remove the row")
    return Conversation(row, tuple(turns))


def _rank(node: Mapping[str, Any], speaker: str, where: str) -> int | None:
    """Returns an answer's rank; questions are ranked too, and nobody learns from that."""
    value = find(node, ("rank",), where)
    if value is None or _SPEAKERS[speaker] != "assistant":
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or value < 0:
        raise DataError(f"{where}: rank {show(value)}; it is a whole number from 0 on, or null")
    return int(value)


def _best(replies: Sequence[Any], where: str) -> list[Any]:
    nodes = [mapping(reply, where) for reply in replies]
    left = [node for node in nodes if not node.get("deleted") and node.get("review_result") is not False]
    ranks = [rank for node in left if (rank := _rank(node, "assistant", where)) is not None]
    return [node for node in left if not ranks or node.get("rank") in (None, min(ranks))]


def _placed(node: Mapping[str, Any], above: Any, seen: set[str], where: str) -> Any:
    """Returns a message's id; checks that it stands under its parent, and once."""
    number, parent = find(node, ("message_id",), where), find(node, ("parent_id",), where)
    if above is not None and parent is not None and parent != above:
        raise DataError(f"{where}: its parent_id is {show(parent)}, and it stands among the replies to {show(above)}")
    if number is not None and str(number) in seen:
        raise DataError(f"{where}: message_id {show(number)} is there twice: a cycle, or a copy; mend the tree")
    seen.add(str(number))
    return number
