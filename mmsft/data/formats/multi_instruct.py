"""MultiInstruct's format: a picture, an instruction, options and regions of the picture."""

from collections.abc import Callable, Sequence
from typing import Any, Final

from mmsft.data.formats.chance import shuffled
from mmsft.data.formats.fields import find, require, show, text
from mmsft.data.formats.regions import Size, in_bins, read_box
from mmsft.errors import DataError
from mmsft.types import Conversation, Media, Record, Text, Turn

_HEADER: Final = "[Options]: "
_BETWEEN: Final = "||||"


def multi_instruct(record: Record, row: str, *, size: Callable[[Media], Size], seed: int = 0) -> Conversation:
    """Reads ``{"image_path": "…", "prompt": "…", "target": "…", "options": […], "region": […], "task_name": "…"}``.

    Options are shuffled and listed below the prompt. Regions, boxes in pixels, become bins (`regions.in_bins`) where
    prompt and target write them; a target that is absent is the regions, joined, as in tasks that answer with a region.

    Args:
        record: the row.
        row: its id.
        size: of a picture.
        seed: of the options' order.

    Raises:
        DataError: the row isn't of this form, or its answer is none of its options.
    """
    path = require(record, ("image_path",), row)
    if not isinstance(path, str):
        raise DataError(f"{row}: image_path must be a path, got {show(path)}")
    picture = Media("image", path)
    boxes = _boxes(record, picture, row, size)
    question = _binned(text(require(record, ("prompt",), row), f"{row}: prompt"), boxes)
    stated = find(record, ("target",), row)
    stated = find(record, ("target_txt",), row) if stated in (None, "") else stated
    if stated in (None, "") and not boxes:
        raise DataError(f"{row}: no 'target', 'target_txt' or 'region' to answer with; remove the row")
    answer = " ".join(boxes.values()) if stated in (None, "") else _binned(text(stated, f"{row}: target"), boxes)
    options = [_binned(option, boxes) for option in _texts(find(record, ("options",), row), f"{row}: options")]
    if options and answer not in options:
        raise DataError(f"{row}: its answer {show(answer)} is none of its options {options}; mend the row")
    if options and _HEADER.strip() not in question:
        question = f"{question}\n\n{_HEADER}{_BETWEEN.join(shuffled(row, 'options', seed, options))}"
    task = find(record, ("task_name",), row)
    tags = {} if task is None else {"task_name": text(task, f"{row}: task_name")}
    user = Turn("user", (picture, Text(f"\n{question}")))
    return Conversation(row, (user, Turn("assistant", (Text(answer),))), tags)


def _boxes(record: Record, picture: Media, row: str, size: Callable[[Media], Size]) -> dict[str, str]:
    """Returns each region as the row writes it, and as bins."""
    value = find(record, ("region", "regions"), row)
    if value in (None, "", [], ()):
        return {}
    if not isinstance(value, list | tuple) or all(isinstance(number, int | float) for number in value):
        value = [value]
    read = [(box, read_box(box, f"{row}: region {number}")) for number, box in enumerate(value, 1)]
    known = size(picture)
    return {_written(box): in_bins(sides, known) for box, sides in read}


def _written(box: Any) -> str:
    return box.strip() if isinstance(box, str) else " ".join(f"{number}" for number in box)


def _binned(said: str, boxes: dict[str, str]) -> str:
    for written, binned in boxes.items():
        said = said.replace(written, binned)
    return said


def _texts(value: Any, where: str) -> Sequence[str]:
    if value in (None, "", [], ()):
        return ()
    if not isinstance(value, list | tuple):
        raise DataError(f"{where}: expected a list of texts, got {show(value)}")
    return [text(each, where) for each in value]
