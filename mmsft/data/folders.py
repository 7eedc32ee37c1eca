"""What a folder holds as rows: files of them, a data set saved by the `datasets` library, or media with their texts."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mmsft.data.arrow import ArrowRows
from mmsft.data.rows import ManyRows, Rows, check_index
from mmsft.errors import ConfigError, DataError, suggest
from mmsft.types import Record

SUFFIXES: Final = (".jsonl", ".ndjson", ".json", ".parquet", ".arrow", ".csv", ".tsv", ".tar")
"""Of files of rows."""

MEDIA: Final[Mapping[str, str]] = {
    **dict.fromkeys((".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"), "image"),
    **dict.fromkeys((".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a"), "audio"),
    **dict.fromkeys((".mp4", ".webm", ".mkv", ".avi", ".mov"), "video"),
    **dict.fromkeys((".ply", ".obj", ".npy"), "points"),
}
"""The modality of a file in a folder of media, by its suffix."""

_STATE, _SPLITS = "state.json", "dataset_dict.json"
_TABLES: Final = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_SHOWN: Final = 6
BUILD: Final = ".build.json"
"""Ends the name of what `mmsft data build` writes beside the shards of a part."""


@dataclass(frozen=True)
class MediaRows:
    """A row for each medium in a folder: its path, its folder's name, and what stands in a text or JSON file beside it.

    Attributes:
        root: the folder.
        files: the media, relative to it.
    """

    root: Path
    files: Sequence[str]

    def __len__(self) -> int:
        return len(self.files)

    def row_id(self, index: int) -> str:
        """Returns the medium's path in the folder."""
        return f"{self.root.name}/{self.files[index]}"

    def __getitem__(self, index: int) -> Record:
        """Reads a row: ``{"image": "red/1.png", "label": "red", "text": "…"}``.

        Raises:
            IndexError: there is no such row.
            DataError: the file beside it can't be read.
        """
        check_index(index, len(self), self.root.name)
        file = Path(self.files[index])
        row: dict[str, Any] = {MEDIA[file.suffix.lower()]: str(file)}
        if file.parent != Path():
            row["label"] = file.parent.name
        beside = (self.root / file).with_suffix(".json")
        text = beside.with_suffix(".txt")
        try:
            if text.is_file():
                row["text"] = text.read_text(encoding="utf-8").strip()
            if beside.is_file():
                row |= json.loads(beside.read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{self.row_id(index)}: the file beside it can't be read: {error}; mend it") from None
        return row


def open_folder(path: Path, split: str | None, open_file: Callable[[Path], Rows]) -> Rows:
    """Opens a folder.

    Args:
        path: the folder.
        split: of a data set with several.
        open_file: opens one of its files of rows.

    Raises:
        ConfigError: it holds nothing that can be read, or files of several kinds.
    """
    if (path / _SPLITS).is_file():
        return open_folder(path / _chosen(path, _listed(path / _SPLITS, "splits"), split), None, open_file)
    if parts := sorted(path.glob(f"*{BUILD}")):
        part = _chosen(path, [file.name.removesuffix(BUILD) for file in parts], split)
        return _joined([open_file(file) for file in sorted(path.glob(f"{part}-*.tar"))], path)
    if split is not None:
        raise ConfigError(f"{path}: has no splits, so that {split!r} is none of them; leave `split` out")
    if (path / _STATE).is_file():
        names = [str(file.get("filename")) for file in _listed(path / _STATE, "_data_files") if isinstance(file, dict)]
        return _joined([ArrowRows(path / name) for name in names], path)
    for table in _TABLES:
        if (path / table).is_file():
            return open_file(path / table)
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
    media = _media(path)
    if media and not (set(files) - {(path / name).with_suffix(".json") for name in media}):
        return MediaRows(path, media)
    kinds = sorted({file.suffix for file in files})
    if len(kinds) > 1:
        raise ConfigError(f"{path}: holds files of several kinds ({', '.join(kinds)}); name one: {path}/*{kinds[0]}")
    if not files:
        found = ", ".join(sorted(entry.name for entry in path.iterdir())[:_SHOWN]) or "nothing"
        raise ConfigError(f"{path}: is a folder without rows or media; it has {found}")
    return _joined([open_file(file) for file in files], path)


def open_pattern(path: Path, open_file: Callable[[Path], Rows]) -> Rows:
    """Opens the files whose names match a pattern such as ``data/part-*.jsonl``, in the order of their names.

    Raises:
        ConfigError: none does.
    """
    files = sorted(path.parent.glob(path.name)) if path.parent.is_dir() else []
    return _joined([open_file(file) for file in files if file.is_file()], path)


def _joined(parts: Sequence[Rows], path: Path) -> Rows:
    if not parts:
        raise ConfigError(f"{path}: there is no such file")
    return parts[0] if len(parts) == 1 else ManyRows(tuple(parts))


def _media(path: Path) -> list[str]:
    """Returns the media in the folder and in those right below it, where a folder names a class."""
    found = (file for pattern in ("*", "*/*") for file in path.glob(pattern))
    return sorted(str(file.relative_to(path)) for file in found if file.suffix.lower() in MEDIA and file.is_file())


def _listed(file: Path, name: str) -> Sequence[Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))[name]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file}: can't be read ({type(error).__name__}: {error}); save the data set again") from None
    if not isinstance(found, list):
        raise ConfigError(f"{file}: {name} isn't a list; save the data set again")
    return found


def _chosen(path: Path, splits: Sequence[Any], split: str | None) -> str:
    names = [str(name) for name in splits]
    if split is None and len(names) == 1:
        return names[0]
    if split not in names:
        said = "state `split`" if split is None else f"no split {split!r}{suggest(split, names)}"
        raise ConfigError(f"{path}: {said}; it has {', '.join(names) or 'none'}")
    return split
