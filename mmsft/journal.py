"""A file of JSON lines that a resumed run cuts back to its checkpoint."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


class Journal:
    """Appends one JSON object a line; every line has the number of its stage and its step there.

    Args:
        path: the file; made when the first line is written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, stage: int, step: int, values: Mapping[str, Any]) -> None:
        """Appends a line that is on disk, whole, when this returns."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"stage": stage, "step": step, **values}, ensure_ascii=False) + "\n")

    def read(self) -> Iterator[dict[str, Any]]:
        """Yields the lines; a half-written last one, left by a killed process, is not one."""
        if not self._path.exists():
            return
        with self._path.open(encoding="utf-8") as file:
            for line in file:
                if line.endswith("\n"):
                    yield json.loads(line)

    def rewind(self, stage: int, step: int) -> None:
        """Forgets what came after `step` of `stage`, so that the resumed run can write it again."""
        if not self._path.exists():
            return
        aside = self._path.with_name(f".{self._path.name}.rewinding")
        with aside.open("w", encoding="utf-8") as file:
            for line in self.read():
                if (line["stage"], line["step"]) <= (stage, step):
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
        os.replace(aside, self._path)
