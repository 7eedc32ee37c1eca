"""Unnatural Instructions: an instruction with its input and constraints, and other wordings of it."""

from collections.abc import Mapping
from typing import Any

from mmsft.data.formats.fields import find, items, mapping, require, text
from mmsft.data.formats.self_instruct import thread
from mmsft.types import Conversation, Record, Turn


def unnatural_instructions(record: Record, row: str, *, reformulations: bool = True) -> Conversation:
    """Reads ``{"instruction": …, "instances": [{"instruction_with_input", "input", "constraints", "output"}], …}``.

    Args:
        record: the row.
        row: its id.
        reformulations: read the row's ``reformulations`` too; each is a thread, as each instance is.

    Raises:
        DataError: the row isn't of this form.
    """
    listed = items(require(record, ("instances",), row), f"{row}: instances")
    turns: list[Turn] = []
    for number, value in enumerate(listed, 1):
        turns += _thread(value, f"{row}: instance {number}")
    others = find(record, ("reformulations",), row) if reformulations else None
    for number, value in enumerate(items(others, f"{row}: reformulations") if others else (), 1):
        turns += _thread(value, f"{row}: reformulation {number}")
    return Conversation(row, tuple(turns))


def _thread(value: Any, where: str) -> tuple[Turn, Turn]:
    instance = mapping(value, where)
    question = text(require(instance, ("instruction_with_input",), where), f"{where}: instruction_with_input").strip()
    return thread("\n".join([question, *_constraints(instance, where)]), instance.get("output"), where)


def _constraints(instance: Mapping[str, Any], where: str) -> list[str]:
    """Returns the constraints, unless there are none, which the files say in words."""
    value = find(instance, ("constraints",), where)
    said = "" if value is None else text(value, f"{where}: constraints").strip()
    return [f"Constraints: {said}"] if said and said.rstrip(".").lower() != "none" else []
