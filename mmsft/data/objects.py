"""Rows inside one JSON object: a task of Natural Instructions with its instances, or a file of MIMIC-IT."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from mmsft.data.files import RandomFile
from mmsft.data.rows import Rows, check_index
from mmsft.errors import DataError
from mmsft.types import Record

_INSTANCES: Final = "Instances"
_EXAMPLES: Final = "rel_ins_ids"
_IMAGES: Final = "image_ids"


@dataclass(frozen=True)
class ObjectRows:
    """Rows that were read with the object around them, since they need what stands beside them.

    Attributes:
        file: the file.
        names: of the rows, as errors tell them.
    """

    file: RandomFile
    names: Sequence[str]
    _rows: list[Record] = field(default_factory=list, repr=False)

    def __len__(self) -> int:
        return len(self.names)

    def row_id(self, index: int) -> str:
        """Returns ``file.json:12``, counted from 1, or ``file.json:NAME`` where rows have names."""
        return f"{self.file.path.name}:{self.names[index]}"

    def __getitem__(self, index: int) -> Record:
        """Reads a row.

        Raises:
            IndexError: there is no such row.
            DataError: the file was changed since it was opened.
        """
        check_index(index, len(self), self.file.path.name)
        if not self._rows:  # pickled without them
            self._rows.extend(_read(self.file)[1])
        return self._rows[index]

    def __getstate__(self) -> dict[str, Any]:
        return {"file": self.file, "names": self.names, "_rows": []}


def open_object(file: RandomFile, otherwise: Rows | None = None) -> Rows:
    """Opens a JSON object with rows inside.

    Args:
        file: the file.
        otherwise: the rows of a file that isn't one of those that are known.

    Raises:
        DataError: it isn't one of those, and there are no other rows.
    """
    try:
        names, rows = _read(file)
    except DataError:
        if otherwise is None:
            raise
        return otherwise
    return ObjectRows(file, names, rows)


def _read(file: RandomFile) -> tuple[list[str], list[Record]]:
    try:
        value = json.loads(file.read(0, file.size).decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file.path}: not valid JSON: {error}; fetch or write it again") from None
    found = value if isinstance(value, dict) else {}
    if isinstance(found.get(_INSTANCES), list):
        return _task(found, file.path)
    if isinstance(found.get("data"), dict):
        return _mimic_it(found["data"])
    raise DataError(
        f"{file.path}: is one JSON object with {', '.join(map(str, list(found)[:8])) or 'no keys'}; a source is an "
        "array of rows, `[{...}, {...}]`, one row a line, a task with Instances, or MIMIC-IT's data"
    )


def _task(value: Mapping[str, Any], path: Path) -> tuple[list[str], list[Record]]:
    """Returns a row for each instance, with the task's own fields."""
    task = {name: found for name, found in value.items() if name != _INSTANCES}
    task.setdefault("Task", path.stem)
    rows: list[Record] = [
        {**task, **instance} if isinstance(instance, dict) else {**task, "input": instance}
        for instance in value[_INSTANCES]
    ]
    return [str(number) for number in range(1, len(rows) + 1)], rows


def _mimic_it(data: Mapping[str, Any]) -> tuple[list[str], list[Record]]:
    """Returns a row for each instruction, with the ones that it names as examples."""
    return list(data), [_with_examples(data, value) for value in data.values()]


def _with_examples(data: Mapping[str, Any], value: Any) -> Record:
    if not isinstance(value, dict):
        return {"instruction": value}
    related = value.get(_EXAMPLES) or []
    named = related if isinstance(related, list) else [related]
    row = {**_pictured(value), "examples": [_pictured(data[name]) for name in named if _is_row(data, name)]}
    absent = [name for name in named if not _is_row(data, name)]
    return {**row, "missing": f"{_EXAMPLES} names {absent[0]!r}, which isn't in the file; mend it"} if absent else row


def _is_row(data: Mapping[str, Any], name: Any) -> bool:
    return isinstance(name, str) and isinstance(data.get(name), dict)


def _pictured(value: Mapping[str, Any]) -> Record:
    others = {name: found for name, found in value.items() if name not in (_EXAMPLES, _IMAGES)}
    return {**others, "images": value.get(_IMAGES) or []}
