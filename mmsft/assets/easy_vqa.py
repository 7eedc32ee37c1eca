"""easy-VQA's rows: questions about pictures of one coloured shape, and the same questions about words."""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from mmsft.assets.rows import asked, write_lines

SHAPES: Final = frozenset({"circle", "rectangle", "triangle"})
"""What easy-VQA's pictures show, by its answers."""

COLOURS: Final = frozenset({"black", "blue", "brown", "gray", "green", "red", "teal", "yellow"})
"""The colours of what they show."""


def prepare_easy_vqa(folder: Path) -> None:
    """Writes each split as LLaVA rows, one a question, and the training rows once more with words for their picture."""
    for split in ("train", "test"):
        questions = json.loads((folder / split / "questions.json").read_text(encoding="utf-8"))
        rows = [_row(split, number, *question) for number, question in enumerate(questions)]
        write_lines(folder / f"{split}.jsonl", rows)
        if split == "train":
            write_lines(folder / "words.jsonl", _in_words(rows))


def _row(split: str, number: int, question: str, answer: str, image: int) -> dict[str, Any]:
    picture = {"image": f"{split}/images/{image}.png"}
    return asked(f"{split}-{number}", picture, question, answer, type=question_type(question))


def _in_words(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yields rows that say ``blue rectangle`` for their picture, where its questions and answers tell so much."""
    said: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row["type"] != "yesno":
            said[row["image"]].update(_words(row["conversations"][0]), _words(row["conversations"][1]))
    for row in rows:
        colours, shapes = COLOURS & said[row["image"]], SHAPES & said[row["image"]]
        if colours and shapes:
            question, answered = row["conversations"]
            told = question["value"].replace("<image>", " ".join([*colours, *shapes]))
            turns = [{**question, "value": told}, answered]
            yield {"id": f"{row['id']}-words", "type": row["type"], "conversations": turns}


def _words(turn: dict[str, str]) -> list[str]:
    return turn["value"].rstrip("?").split()


def question_type(question: str) -> Literal["shape", "color", "yesno"]:
    """Returns what an EasyVQA question asks for."""
    if not question.startswith("what"):
        return "yesno"
    return "color" if "color" in question else "shape"
