"""Rows that assets are turned into: LLaVA's form, one question and one answer, with the medium that is asked about."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from mmsft.errors import ConfigError

_COLUMNS: Final = ("image", "audio", "video")
"""Modalities that have a column of their own; others stand together in ``media``."""


def asked(id: str, medium: Mapping[str, str], question: str, answer: str, **columns: str) -> dict[str, Any]:
    """Returns a row.

    Args:
        id: its name, one of its own in the file.
        medium: what the question is about, by modality, ``{"image": "images/1.png"}``; its tag comes first.
        question: what is asked of it.
        answer: what is learned.
        columns: what a recipe can choose rows by, and score by.
    """
    tags = "".join(f"<{modality}>" for modality in medium)
    turns = [{"from": "human", "value": f"{tags}\n{question}"}, {"from": "gpt", "value": answer}]
    others = {modality: path for modality, path in medium.items() if modality not in _COLUMNS}
    files = {modality: path for modality, path in medium.items() if modality in _COLUMNS}
    return {"id": id, **files, **({"media": others} if others else {}), **columns, "conversations": turns}


def write_lines(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes rows as JSON, one a line.

    Raises:
        ConfigError: there is none, so that the package isn't what it was thought to be.
    """
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    if not lines:
        raise ConfigError(f"{file.name}: nothing in the package becomes a row; it isn't what was expected")
    with file.open("w", encoding="utf-8") as out:
        out.writelines(lines)
