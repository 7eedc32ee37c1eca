"""What stands for a row's ``objects``: their names, and their boxes as numbers in words."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, Literal, TypeAlias

from mmsft.data.formats.fields import items, parsed, show, text
from mmsft.data.formats.regions import BINS, Size
from mmsft.errors import DataError
from mmsft.types import Media, Record, Text

Boxes: TypeAlias = Literal["thousandths", "pixels", "bins"]
"""How boxes are written: of the picture's sides, as most models that find things have it; or as OFA's tokens."""

_NAME: Final = "ref-object"
_BOX: Final = "bbox"
_PARTS: Final[Mapping[str, int]] = {"thousandths": 1000, "bins": BINS - 1}
"""Into how many parts a side is divided."""


def read_objects(
    record: Record, row: str, pictures: Sequence[Media], boxes: Boxes, size: Callable[[Media], Size] | None
) -> dict[str, list[Text]]:
    """Reads ms-swift's ``objects``: what its tags ``<ref-object>`` and ``<bbox>`` stand for, each in order.

    ``{"ref": ["a dog"], "bbox": [[10, 20, 300, 400]], "bbox_type": "real", "image_id": [0]}``: a box is left, top,
    right and bottom, in pixels of the picture of that number, or with ``norm1`` in parts of its sides; two numbers are
    a point. What lies outside of the picture is at its edge, unless it is written in pixels.

    Args:
        record: the row.
        row: its id.
        pictures: of the row.
        boxes: how they are written.
        size: of a picture; None = only what needs no size can be read.

    Returns:
        Texts by tag; none if no text of the row has such a tag, since the column may be anybody's.

    Raises:
        DataError: the objects can't be read.
    """
    value = record.get("objects")
    if value is None or not _mentioned([other for name, other in record.items() if name != "objects"]):
        return {}
    where = f"{row}: objects"
    objects = parsed(value, where)
    if not isinstance(objects, Mapping):
        raise DataError(f"{where}: expected an object with `ref` and `bbox`, got {show(objects)}")
    names, listed = objects.get("ref") or [], objects.get("bbox") or []
    kind = objects.get("bbox_type") or "real"
    if kind not in ("real", "norm1"):
        raise DataError(f"{where}: bbox_type must be real (pixels) or norm1 (parts of a side), got {show(kind)}")
    which = _numbers(listed, objects.get("image_id") or [], where)
    return {
        _NAME: [Text(text(name, f"{where}: ref")) for name in items(names, where)] if names else [],
        _BOX: [
            Text(_written(box, f"{where}: box {number}", boxes, kind == "real", partial(_sides, pictures, image, size)))
            for number, (box, image) in enumerate(zip(listed, which, strict=True), 1)
        ],
    }


def _sides(pictures: Sequence[Media], number: int, size: Callable[[Media], Size] | None, where: str) -> Size:
    """Returns the size of the picture that a box belongs to."""
    if size is None:
        raise DataError(f"{where}: a box in pixels, which only the format `messages` can place; state it")
    if not 0 <= number < len(pictures):
        raise DataError(f"{where}: belongs to picture {number} (from 0) of {len(pictures)}; mend image_id")
    return size(pictures[number])


def _written(box: Any, where: str, boxes: Boxes, real: bool, sides_of: Callable[[str], Size]) -> str:
    points = _points(box, where)
    if boxes == "pixels" and real:
        return _listed([(round(x), round(y)) for x, y in points])
    sides = sides_of(where) if real or boxes == "pixels" else Size(1, 1)
    across, down = (sides.width, sides.height) if real else (1, 1)
    parts = [(min(max(x / across, 0), 1), min(max(y / down, 0), 1)) for x, y in points]
    if boxes == "pixels":
        return _listed([(round(x * sides.width), round(y * sides.height)) for x, y in parts])
    most = _PARTS[boxes]
    places = [(round(x * most), round(y * most)) for x, y in parts]
    return (
        _listed(places) if boxes == "thousandths" else " ".join(f"<bin_{place}>" for point in places for place in point)
    )


def _listed(points: Sequence[tuple[int, int]]) -> str:
    return f"[{','.join(f'({x},{y})' for x, y in points)}]"


def _points(box: Any, where: str) -> list[tuple[float, float]]:
    """Returns a point, or the upper left and the lower right one of a box, whichever corners it states."""
    numbers = box if isinstance(box, list | tuple) else ()
    if len(numbers) not in (2, 4) or not all(_is_number(number) for number in numbers):
        raise DataError(f"{where}: expected 2 numbers (a point) or 4 (left, top, right, bottom), got {show(box)}")
    xs, ys = sorted(numbers[::2]), sorted(numbers[1::2])
    return list(zip(xs, ys, strict=True))


def _numbers(boxes: Any, stated: Any, where: str) -> list[int]:
    """Returns the number of each box's picture; the first one's where none is stated."""
    whole = isinstance(stated, list | tuple) and all(type(number) is int for number in stated)
    if not isinstance(boxes, list | tuple) or not whole or len(stated) > len(boxes):
        raise DataError(
            f"{where}: bbox must be a list of boxes, and image_id a list of as many numbers, got {show(boxes)} and "
            f"{show(stated)}"
        )
    return [*stated, *[0] * (len(boxes) - len(stated))]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _mentioned(value: Any) -> bool:
    """Tells whether a text in the value has a tag of objects."""
    if isinstance(value, str):
        return f"<{_NAME}>" in value or f"<{_BOX}>" in value
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return any(map(_mentioned, inner))
