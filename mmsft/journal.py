"""A file of JSON lines that a resumed run cuts back to its checkpoint."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmsft.errors import CheckpointError


class Journal:
    """Appends one JSON object a line; every line has the number of its stage and its step there.

    Args:
        path: the file; made when the first line is written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, stage: int, step: int, values: Mapping[str, Any]) -> None:
        """Appends a line, which outlives the process from here on.

        Raises:
            CheckpointError: the disk is full or refuses.
        """
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"stage": stage, "step": step, **values}, ensure_ascii=False) + "\n")
        except OSError as error:
            raise self._unwritable(error) from error

    def read(self) -> Iterator[dict[str, Any]]:
        """Yields the lines; a half-written last one, left by a killed process, is not one."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:  # half a line may end in half a character
            for line in file:
                if line.endswith(b"\n"):
                    yield json.loads(line)

    def rewind(self, stage: int, step: int) -> None:
        """Forgets what came after `step` of `stage`, so that the resumed run can write it again.

        Raises:
            CheckpointError: the disk is full or refuses; the file is as it was.
        """
        if not self._path.exists():
            return
        aside = self._path.with_name(f".{self._path.name}.rewinding")
        try:
            with aside.open("w", encoding="utf-8") as file:
                for line in self.read():
                    if (line["stage"], line["step"]) <= (stage, step):
                        file.write(json.dumps(line, ensure_ascii=False) + "\n")
            os.replace(aside, self._path)
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> CheckpointError:
        return CheckpointError(
            f"{self._path}: can't be written: {error}\nmake room or mend the folder, then run the same command to go on"
        )
