"""MIMIC-IT's format: an instruction on pictures, behind others that serve as examples."""

from typing import Any

from mmsft.data.formats.fields import find, items, mapping, require, text
from mmsft.data.formats.media_tags import read_media
from mmsft.errors import DataError
from mmsft.types import Conversation, Record, Text, Turn


def mimic_it(record: Record, row: str) -> Conversation:
    """Reads one instruction of a MIMIC-IT file, with its examples, as `open_rows` gives them.

    ``{"instruction": "…", "answer": "…", "images": […], "examples": [{"instruction", "answer", "images"}, …]}``: the
    examples are what ``rel_ins_ids`` names, in its order, and each brings its own pictures. All answers are learned
    with ``learn: assistant``, and only the row's own one with ``learn: completion``.

    Raises:
        DataError: the row isn't of this form.
    """
    missing = find(record, ("missing",), row)
    if missing:
        raise DataError(f"{row}: {missing}")
    listed = find(record, ("examples",), row)
    examples = items(listed, f"{row}: examples") if listed else ()
    turns = [
        turn
        for number, example in enumerate(examples, 1)
        for turn in _pair(mapping(example, f"{row}: example {number}"), f"{row}: example {number}")
    ]
    return Conversation(row, (*turns, *_pair(record, row)))


def _pair(record: Record, where: str) -> tuple[Turn, Turn]:
    question = text(require(record, ("instruction",), where), f"{where}: instruction").strip()
    answer = text(require(record, ("answer",), where), f"{where}: answer").strip()
    if not question or not answer:
        raise DataError(f"{where}: its {'answer' if question else 'instruction'} is empty; fill it, or remove the row")
    pictures = _pictures(find(record, ("images",), where), where)
    return Turn("user", (*pictures, Text(question))), Turn("assistant", (Text(answer),))


def _pictures(value: Any, where: str) -> list[Any]:
    if not value:
        return []
    listed = items(value, f"{where}: images")
    return [read_media("image", each, f"{where}: image {number}") for number, each in enumerate(listed, 1)]
