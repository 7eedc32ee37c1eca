"""What the `datasets` library says of its columns beside their types: classes have names, and texts may be JSON."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from mmsft.data.labels import Hidden, Label
from mmsft.errors import DataError
from mmsft.types import Record

Reading: TypeAlias = Callable[[Any], Any]

_KEY: Final = b"huggingface"
"""Of a schema's metadata, under which the library writes the features of its columns."""
_LISTS: Final = ("List", "LargeList", "Sequence")


@dataclass(frozen=True, slots=True)
class Columns:
    """Reads the columns of which a schema says more than their types; picklable.

    Attributes:
        readings: by column.
    """

    readings: Mapping[str, Reading]

    def read(self, record: Record, row: str) -> Record:
        """Returns a row whose classes are `Label` and whose JSON is parsed.

        Raises:
            DataError: a column that should be JSON isn't.
        """
        return {**record, **{name: self._value(name, record.get(name), row) for name in self.readings}}

    def _value(self, name: str, value: Any, row: str) -> Any:
        try:
            return self.readings[name](value)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{row}: column {name!r} isn't the JSON that the file says it is: {error}") from None


def columns_of(schema: Any) -> Columns:
    """Returns how to read the columns of an Arrow schema.

    Args:
        schema: a `pyarrow.Schema`; one that the library didn't write says nothing.
    """
    try:
        features = json.loads((schema.metadata or {}).get(_KEY, b"{}"))["info"]["features"]
    except (ValueError, LookupError, TypeError):
        return Columns({})
    readings = _fields(features) if isinstance(features, dict) else {}
    return Columns({name: reading for name, reading in readings.items() if name in schema.names})


@dataclass(frozen=True, slots=True)
class _Class:
    names: tuple[str, ...]

    def __call__(self, value: Any) -> Any:
        if not isinstance(value, int):
            return value
        return Label(value, self.names[value]) if 0 <= value < len(self.names) else Hidden(value)


@dataclass(frozen=True, slots=True)
class _Each:
    item: Reading

    def __call__(self, value: Any) -> Any:
        return [self.item(each) for each in value] if isinstance(value, list) else value


@dataclass(frozen=True, slots=True)
class _Fields:
    fields: Mapping[str, Reading]

    def __call__(self, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {**value, **{name: read(value[name]) for name, read in self.fields.items() if name in value}}


def _json(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


def _fields(features: Mapping[str, Any]) -> dict[str, Reading]:
    found = {name: _reading(feature) for name, feature in features.items()}
    return {name: reading for name, reading in found.items() if reading is not None}


def _reading(feature: Any) -> Reading | None:
    """Returns how to read a feature's values; None = as they are."""
    if isinstance(feature, list) and len(feature) == 1:
        return _listed(feature[0])
    if not isinstance(feature, dict):
        return None
    kind = feature.get("_type")
    if kind == "ClassLabel" and isinstance(feature.get("names"), list):
        return _Class(tuple(map(str, feature["names"])))
    if kind == "Json":
        return _json
    if kind in _LISTS:
        return _listed(feature.get("feature"), turned=kind == "Sequence")
    fields = _fields(feature) if not isinstance(kind, str) else {}
    return _Fields(fields) if fields else None


def _listed(feature: Any, turned: bool = False) -> Reading | None:
    """Returns how to read lists of a feature; a sequence of objects is stored as an object of lists."""
    if turned and isinstance(feature, dict) and not isinstance(feature.get("_type"), str):
        fields = {name: _Each(reading) for name, reading in _fields(feature).items()}
        return _Fields(fields) if fields else None
    item = _reading(feature)
    return None if item is None else _Each(item)
