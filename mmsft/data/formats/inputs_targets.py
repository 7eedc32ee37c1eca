"""Rows of inputs and targets, as P3, xP3 and FLAN have them."""

from collections.abc import Sequence
from typing import Any

from mmsft.data.formats.dialogue import read_dialogue
from mmsft.data.formats.fields import find, require, show, text
from mmsft.errors import DataError
from mmsft.types import Conversation, Record


def inputs_targets(record: Record, row: str, *, list_choices: bool = False) -> Conversation:
    """Reads ``{"inputs": "…", "targets": "…", "answer_choices": ["…", "…"]}``.

    P3's rows on the hub hold tokens in these columns, and their text in ``inputs_pretokenized`` and
    ``targets_pretokenized``, which is what is read then.

    Args:
        record: the row.
        row: its id.
        list_choices: write the answer choices below the input, as FLAN does for classification.

    Raises:
        DataError: the row isn't of this form, or it has no target.
    """
    question, answer = (_text(record, name, row) for name in ("inputs", "targets"))
    choices = _choices(find(record, ("answer_choices",), row), row)
    if list_choices and choices:
        question = "\n".join([question, "OPTIONS:", *(f"- {choice}" for choice in choices)])
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return read_dialogue(record, row, turns)


def _text(record: Record, name: str, row: str) -> str:
    written = find(record, (f"{name}_pretokenized",), row)
    if written is None:
        written = require(record, (name,), row)
    if isinstance(written, list | tuple):
        raise DataError(
            f"{row}: {name} holds {show(written)}: tokens of another model; write its text as {name}_pretokenized"
        )
    return text(written, f"{row}: {name}").strip()


def _choices(value: Any, row: str) -> Sequence[str]:
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise DataError(f"{row}: answer_choices must be a list of texts, got {show(value)}")
    return [text(choice, f"{row}: answer_choices") for choice in value]
