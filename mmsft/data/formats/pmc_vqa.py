"""PMC-VQA's format: a figure, a question with four choices, and the figure's caption."""

import re
from typing import Final, Literal

from mmsft.data.formats.chance import pick
from mmsft.data.formats.fields import find, require, show, text
from mmsft.errors import DataError
from mmsft.types import Conversation, Media, Record, Text, Turn

Form = Literal["blank", "choices", "caption"]
FORMS: Final[tuple[Form, ...]] = ("blank", "choices", "caption")
_LETTERS: Final = "ABCD"
_PREFIX: Final = re.compile(r"\s*[A-D]\s*:\s*")


def pmc_vqa(
    record: Record, row: str, *, form: Literal["drawn", "blank", "choices", "caption"] = "drawn", seed: int = 0
) -> Conversation:
    """Reads ``{"Figure_path": "…", "Question": "…", "Choice A": " A:…", …, "Answer": "B", "Caption": "…"}``.

    The files misspell the answer's column as ``Anwser``; either is read. The answer is a letter, or a choice's text.

    Args:
        record: the row.
        row: its id.
        form: of the prompt: the question alone (``blank``), with its ``choices``, behind the ``caption``; or one of the
            three, ``drawn`` for each row with like odds.
        seed: of what is drawn.

    Raises:
        DataError: the row isn't of this form, or the answer is none of the choices.
    """
    choices = [_choice(record, letter, row) for letter in _LETTERS]
    right = _right(text(require(record, ("Answer", "Anwser"), row), f"{row}: Answer"), choices, row)
    question = text(require(record, ("Question",), row), f"{row}: Question").strip()
    asked = f"Question: {question}"
    chosen = pick(row, "form", seed, FORMS) if form == "drawn" else form
    if chosen == "choices":
        listed = "\n".join(f"{letter}: {choice}" for letter, choice in zip(_LETTERS, choices, strict=True))
        asked = f"{asked}\nChoices:\n{listed}"
    elif chosen == "caption":
        caption = find(record, ("Caption",), row)
        asked = f"Caption: {text(caption, f'{row}: Caption').strip()}\n{asked}" if caption else asked
    figure = require(record, ("Figure_path",), row)
    if not isinstance(figure, str):
        raise DataError(f"{row}: Figure_path must be a path, got {show(figure)}")
    user = Turn("user", (Media("image", figure), Text(f"\n{asked}\nThe answer is:")))
    return Conversation(row, (user, Turn("assistant", (Text(choices[right]),))), {"form": chosen})


def _choice(record: Record, letter: str, row: str) -> str:
    name = f"Choice {letter}"
    said = text(require(record, (name,), row), f"{row}: {name}")
    return _PREFIX.sub("", said, count=1).strip() if _PREFIX.match(said) else said.strip()


def _right(answer: str, choices: list[str], row: str) -> int:
    said = answer.strip()
    if said in list(_LETTERS):
        return _LETTERS.index(said)
    plain = _PREFIX.sub("", answer, count=1).strip() if _PREFIX.match(answer) else said
    if plain not in choices:
        raise DataError(f"{row}: its answer {show(answer)} is none of the choices {choices}; mend the row")
    return choices.index(plain)
