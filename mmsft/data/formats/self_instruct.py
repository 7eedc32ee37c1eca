"""Self-Instruct's format: an instruction with several instances of it."""

from mmsft.data.formats.fields import find, items, mapping, require, text
from mmsft.errors import DataError
from mmsft.types import ROOT, Conversation, Record, Text, Turn


def self_instruct(record: Record, row: str) -> Conversation:
    """Reads ``{"instruction": "…", "instances": [{"input": "…", "output": "…"}]}``; each instance is a thread.

    Raises:
        DataError: the row isn't of this form.
    """
    instruction = text(require(record, ("instruction",), row), f"{row}: instruction").strip()
    listed = items(require(record, ("instances",), row), f"{row}: instances")
    turns: list[Turn] = []
    for number, value in enumerate(listed, 1):
        where = f"{row}: instance {number}"
        instance = mapping(value, where)
        given = find(instance, ("input",), where)
        more = "" if given is None else text(given, f"{where}: input").strip()
        turns += thread(f"{instruction}\n{more}" if more else instruction, instance.get("output"), where)
    return Conversation(row, tuple(turns))


def thread(question: str, output: object, where: str) -> tuple[Turn, Turn]:
    """Returns a question and its answer as a thread of their own.

    Raises:
        DataError: either says nothing.
    """
    answer = text(output, f"{where}: output").strip()
    for what, said in (("question", question.strip()), ("output", answer)):
        if not said:
            raise DataError(f"{where}: its {what} is empty; fill it, or remove it")
    return Turn("user", (Text(question),), parent=ROOT), Turn("assistant", (Text(answer),))
