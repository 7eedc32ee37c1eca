"""Puts a row's files where its tags stand: the n-th ``<image>`` of the row is its n-th image."""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from mmsft.data.formats.fields import find, mapping, show
from mmsft.data.formats.grounding import Boxes, read_objects
from mmsft.data.formats.regions import Size
from mmsft.errors import DataError
from mmsft.types import Media, Part, Record, Text

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "image": ("image", "images"),
    "video": ("video", "videos"),
    "audio": ("audio", "audios"),
}
"""Where rows name their files; files of any other modality stand in a column ``media: {modality: files}``."""
_OPTIONS = ("start", "end", "fps")
REFERENCES = ("bytes", "path", "url", "data", "base64")
"""Keys under which an object holds a file."""


class MediaTags:
    """Hands a row's files to its tags in order, and counts both; likewise its objects, where it has some.

    Tags stay where they stand, and the text around them as it is: LLaVA's own code moves ``<image>`` to the front of
    its turn, which is where its data has it in nearly every row.

    Args:
        record: the row.
        row: its id.
        boxes: how the boxes of objects are written.
        size: of a picture, for boxes in pixels.

    Raises:
        DataError: a column of files isn't a path, bytes, an object of them, or a list of those, or objects can't be
            read.
    """

    def __init__(
        self,
        record: Record,
        row: str,
        boxes: Boxes = "thousandths",
        size: Callable[[Media], Size] | None = None,
    ) -> None:
        self._row = row
        self._files = _files(record, row)
        self._objects = read_objects(record, row, self._files["image"], boxes, size)
        self._used: Counter[str] = Counter()
        self._tag = re.compile(f"<({'|'.join(map(re.escape, [*self._files, *self._objects]))})>")

    def split(self, text: str) -> tuple[Part, ...]:
        """Splits a text at its tags and puts files in their places, and what objects are called."""
        pieces = self._tag.split(text)  # text, tag, text, tag, … text
        parts = [self._at(piece) if number % 2 else Text(piece) for number, piece in enumerate(pieces)]
        joined: list[Part] = []
        for part in parts:
            if isinstance(part, Text) and joined and isinstance(joined[-1], Text):
                joined[-1] = Text(joined[-1].text + part.text)
            else:
                joined.append(part)
        return tuple(part for part in joined if part != Text(""))

    def _at(self, tag: str) -> Part:
        if tag not in self._objects:
            return self.next(tag)
        texts, number = self._objects[tag], self._used[tag]
        self._used[tag] += 1
        return texts[number] if number < len(texts) else Text("")

    def next(self, modality: str) -> Media:
        """Returns the next file of a modality; for one too many, a stand-in that `check` reports."""
        files = self._files.get(modality, [])
        number = self._used[modality]
        self._used[modality] += 1
        return files[number] if number < len(files) else Media(modality, "")

    def check(self) -> None:
        """Checks that each file met a tag and each tag a file, and objects likewise.

        Raises:
            DataError: they differ in number.
        """
        for tag, texts in self._objects.items():
            if self._used[tag] != len(texts):
                raise DataError(
                    f"{self._row}: {_count(self._used.pop(tag), f'<{tag}> tag')} in the text, but {len(texts)} in "
                    "`objects`; put a tag where each belongs, or mend the objects"
                )
            del self._used[tag]
        for modality in sorted({*self._files, *self._used}):
            tags, files = self._used[modality], len(self._files.get(modality, []))
            if tags != files:
                raise DataError(
                    f"{self._row}: {_count(tags, f'<{modality}> tag')} in the text, but "
                    f"{_count(files, f'{modality} file')} in the row; {_way_out(modality, tags, files)}"
                )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"


def _way_out(modality: str, tags: int, files: int) -> str:
    columns = " or ".join(map(repr, COLUMNS.get(modality, ("media",))))
    if tags < files:
        return f"put a <{modality}> tag where each file belongs, or remove files from {columns}"
    return (
        f"name a file for each tag in {columns}, or, if the tag is meant as text, write the turn's content as "
        '[{"type": "text", "text": ...}]'
    )


def read_media(modality: str, value: Any, where: str, options: Mapping[str, Any] | None = None) -> Media:
    """Reads one file: a path, URL or data URI, its bytes, or an object with one of `REFERENCES`.

    Of an object with both path and bytes, as Parquet files of Hugging Face hold them, the bytes are taken: the path is
    where they once came from.

    Args:
        modality: of the tower that is to read it.
        value: what the row holds.
        where: its place, for errors.
        options: an object that may say which part of the file is meant: ``start``, ``end``, ``fps``.

    Raises:
        DataError: it is no such thing, or an option is no number.
    """
    if isinstance(value, str | bytes) and value:
        return Media(modality, value, _options(options or {}, where))
    if not isinstance(value, Mapping):
        raise DataError(f"{where}: expected a path, bytes, or an object with one of them, got {show(value)}")
    ref = value.get("bytes") or find(value, ("path", "url"), where)
    inline = find(value, ("data", "base64"), where)
    if not ref and isinstance(inline, str) and inline:
        ref = inline if inline.startswith("data:") else f"data:{modality}/*;base64,{inline}"
    if not isinstance(ref, str | bytes) or not ref:
        have = ", ".join(map(str, value)) or "none"
        raise DataError(f"{where}: none of {', '.join(REFERENCES)} is filled; keys here: {have}")
    return Media(modality, ref, _options({**(options or {}), **value}, where))


def _options(value: Mapping[str, Any], where: str) -> tuple[tuple[str, float], ...]:
    options = tuple((name, value[name]) for name in sorted(_OPTIONS) if value.get(name) is not None)
    for name, number in options:
        if not isinstance(number, int | float) or isinstance(number, bool) or not math.isfinite(number):
            raise DataError(f"{where}: {name!r} must be a finite number, got {show(number)}; mend it or leave it out")
    return options


def media_in_columns(record: Record, row: str) -> list[Media] | None:
    """Returns the media of a row in a format that ships, or None where turns may hold some of their own.

    Turns do so in content that is a list of parts; in text a tag stands for a file of a column.

    Raises:
        DataError: a column of files can't be read.
    """
    turns = (turn for value in record.values() if isinstance(value, list) for turn in value)
    if any(isinstance(value, list) for turn in turns if isinstance(turn, Mapping) for value in turn.values()):
        return None
    return [medium for files in _files(record, row).values() for medium in files]


def _files(record: Record, row: str) -> dict[str, list[Media]]:
    values = {name: find(record, columns, row) for name, columns in COLUMNS.items()}
    others = record.get("media")
    if others is not None:
        for name, value in mapping(others, f"{row}: media").items():
            if values.get(name) is not None:
                raise DataError(f"{row}: {name!r} files are in `media` and in a column of their own; keep one")
            values[name] = value
    return {name: _list(name, value, row) for name, value in values.items()}


def _list(modality: str, value: Any, row: str) -> list[Media]:
    # Files of mixed rows fill the column of a row without media with "", an empty list, or an object of nulls.
    if value is None or value == "" or (isinstance(value, Mapping) and not any(value.values())):
        return []
    several = list(value) if isinstance(value, list | tuple) else [value]
    return [read_media(modality, item, f"{row}: {modality} {number}") for number, item in enumerate(several, 1)]
