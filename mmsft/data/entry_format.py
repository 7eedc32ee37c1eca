"""Reads rows as an entry of LLaMA-Factory's ``dataset_info.json`` says: its columns, its turns' keys and speakers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from mmsft.data.formats.alpaca import alpaca
from mmsft.data.formats.dialogue import turn_list
from mmsft.data.formats.fields import mapping, show
from mmsft.data.formats.messages import messages
from mmsft.data.formats.preference import preference
from mmsft.errors import DataError
from mmsft.types import Conversation, Record

SPEAKERS: Final[Mapping[str, str]] = {
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": "function_call",
    "system_tag": "system",
}
"""Who speaks, as `messages` calls them, by the entry's name for it."""

_OURS: Final = {"prompt": "instruction", "query": "input", "response": "output", "kto_tag": "label"}
"""What the formats call a column, where the entry calls it otherwise."""
_NEEDED: Final = ("response", "messages", "chosen", "rejected", "kto_tag")


@dataclass(frozen=True, slots=True)
class EntryFormat:
    """A data format: only the columns that the entry names are read.

    Attributes:
        columns: where the rows have what, by the entry's name for it.
        tags: keys and speakers of turns, by the entry's names for them; None = the columns are Alpaca's.
        ranking: each row has a chosen and a rejected answer.
    """

    columns: Mapping[str, str]
    tags: Mapping[str, str] | None = None
    ranking: bool = False

    def __call__(self, record: Record, row: str) -> Conversation:
        """Returns the row as a conversation.

        Raises:
            DataError: the row isn't as the entry says.
        """
        for name in _NEEDED:
            if name in self.columns and record.get(self.columns[name]) is None:
                said = "is null" if self.columns[name] in record else f"isn't there; keys here: {', '.join(record)}"
                raise DataError(f"{row}: {self.columns[name]!r}, the entry's columns.{name}, {said}")
        picked = {_OURS.get(name, name): record.get(column) for name, column in self.columns.items()}
        if self.tags is not None:
            picked = self._spoken(picked, self.tags, row)
        if not self.ranking and "kto_tag" not in self.columns:
            return alpaca(picked, row) if self.tags is None else messages(picked, row)
        if not self.ranking and not isinstance(picked["label"], bool):
            raise DataError(f"{row}: the entry's columns.kto_tag must be true or false, got {show(picked['label'])}")
        return preference(picked, row)

    def _spoken(self, picked: dict[str, Any], tags: Mapping[str, str], row: str) -> dict[str, Any]:
        """Returns the columns with turns of role and content; a system turn stands for the column, too."""
        talk = turn_list(picked["messages"], row)
        turns = [_turn(item, tags, f"{row}: turn {number}") for number, item in enumerate(talk, 1)]
        answers = {name: _turn(picked[name], tags, f"{row}: {name}") for name in ("chosen", "rejected") if self.ranking}
        said = {**picked, "messages": turns, **answers}
        return {**said, "system": None} if turns[0]["role"] == "system" else said


def _turn(value: Any, tags: Mapping[str, str], where: str) -> dict[str, Any]:
    item = mapping(value, where)
    said = item.get(tags["role_tag"])
    speaker = next((SPEAKERS[tag] for tag in SPEAKERS if tag in tags and tags[tag] == said), None)
    if speaker is None:
        named = ", ".join(f"{tag}: {tags[tag]}" for tag in SPEAKERS if tag in tags)
        raise DataError(
            f"{where}: its {tags['role_tag']!r} is {show(said)}, which is none of the entry's tags ({named}); name it "
            "there, or mend the row"
        )
    others = {key: other for key, other in item.items() if key not in (*tags.values(), "from", "value")}
    return {**others, "role": speaker, "content": item.get(tags["content_tag"])}
