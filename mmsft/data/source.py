"""A source opened: the rows of a file and how each becomes a conversation."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmsft import assets
from mmsft.config import SourceConfig
from mmsft.data import remote
from mmsft.data.archive import open_archive
from mmsft.data.dataset_info import read_entry
from mmsft.data.download import Hosts, is_url
from mmsft.data.files import check_sum
from mmsft.data.formats import FORMATS, IN_COLUMNS, Format, format_named, options_of, with_options
from mmsft.data.formats.media_tags import media_in_columns
from mmsft.data.formats.recognise import recognise
from mmsft.data.formats.regions import Size
from mmsft.data.hub import place
from mmsft.data.labels import spoken
from mmsft.data.media import MediaRoot, resolve
from mmsft.data.media_reader import file_of
from mmsft.data.rows import Rows
from mmsft.data.sources import open_file, open_rows
from mmsft.data.streams import ShardRows, open_urls, spread
from mmsft.data.token_store import key_of
from mmsft.data.wordings import EachWording, Wordings, read_wordings
from mmsft.errors import ConfigError, DataError, Problems, suggest
from mmsft.modalities.picture import picture_size
from mmsft.types import Conversation, Ints, Media, Part, Record, Turn

_LOOKED_AT = 64
"""Rows from which a format is recognised."""


@dataclass(frozen=True, slots=True)
class Source:
    """One of a recipe's sources, opened.

    Attributes:
        name: in logs, scores and the ledger.
        config: its settings.
        rows: of the file.
        read: from a row and its id to a conversation.
        format: the format's name; empty where templates read the rows.
        root: where its media lie.
        reading: all that decides how a row is read; None = nobody can tell when it changes.
        draws: what a row says depends on its id too.
    """

    name: str
    config: SourceConfig
    rows: Rows
    read: Format
    format: str
    root: MediaRoot
    reading: str | None = None
    draws: bool = False

    def record(self, row: int) -> Record:
        """Reads a row, its columns renamed as the recipe says.

        Raises:
            DataError: the row can't be read.
        """
        return renamed(self.rows[row], self.config.columns)

    def conversation(self, row: int) -> Conversation:
        """Reads a row; its media refs become absolute paths or bytes.

        Raises:
            DataError: the row can't be read, isn't in the format, or a medium isn't where it should be.
        """
        conversation = self.written(row)
        row_id = self.rows.row_id(row)
        return replace(conversation, turns=tuple(self._locate(turn, row_id) for turn in conversation.turns))

    def written(self, row: int) -> Conversation:
        """Reads a row; its media refs stay as they are written.

        Raises:
            DataError: the row can't be read, or isn't in the format.
        """
        record = self.record(row)
        conversation = self.read(record, self.rows.row_id(row))
        tags = {name: spoken(record[name]) for name in self.config.tags if name in record}
        return replace(conversation, tags={**conversation.tags, **tags})

    def media(self, row: int) -> Sequence[Media]:
        """Reads a row's media as they are written; where its columns name them all, without reading the turns.

        Raises:
            DataError: the row can't be read, or isn't in the format.
        """
        if self.format in IN_COLUMNS:
            listed = media_in_columns(self.record(row), self.rows.row_id(row))
            if listed is not None:
                return listed
        return [medium for turn in self.written(row).turns for medium in turn.media]

    def key(self, row: int) -> bytes | None:
        """Returns the same key for rows of which the same conversation is made, but for its id; None = nobody can tell.

        Raises:
            DataError: the row can't be read.
        """
        if self.reading is None:
            return None
        return key_of(self.reading, self.rows.row_id(row) if self.draws else "", self.record(row))

    def picked(self) -> Ints:
        """Returns the rows that `where` and `limit` leave.

        Raises:
            ConfigError: none is left.
        """
        rows = np.arange(len(self.rows))
        if self.config.where:
            rows = np.array([row for row in rows if self._kept(int(row))], np.int64)
        rows = rows[: self.config.limit]
        if not len(rows):
            raise ConfigError(f"source {self.name!r}: no row is left{self._why_none()}")
        return rows

    def _kept(self, row: int) -> bool:
        try:
            record = self.record(row)
        except DataError:
            return True  # a row that can't be read is for the ledger, not for a filter
        return all(spoken(record.get(name)) in values for name, values in self.config.where.items())

    def _why_none(self) -> str:
        if not self.config.where or not len(self.rows):
            return "; the file has none"
        first = self.record(0)
        for name, values in self.config.where.items():
            if name not in first:
                return f" by `where`: rows have no column {name!r}{suggest(name, first)}"
            return f" by `where: {{{name}: {', '.join(values)}}}`; the first row has {spoken(first[name])!r}"
        return ""

    def _locate(self, turn: Turn, row_id: str) -> Turn:
        if not turn.media:
            return turn
        return replace(turn, parts=tuple(self._place(part, row_id) for part in turn.parts))

    def _place(self, part: Part, row_id: str) -> Part:
        if not isinstance(part, Media):
            return part
        file = resolve(part.ref, self.root, row_id, self.config.urls)
        return replace(part, ref=file if isinstance(file, bytes) else str(file))


def renamed(record: Record, columns: Mapping[str, str]) -> Record:
    """Returns a row under the names that its format knows; what else stood under these is gone.

    Args:
        record: the row.
        columns: the format's name: the row's name.
    """
    if not columns:
        return record
    kept = {name: value for name, value in record.items() if name not in columns and name not in columns.values()}
    return {**kept, **{new: record[old] for new, old in columns.items() if old in record}}


def open_source(config: SourceConfig, name: str, count: Callable[[], Callable[[str], int]]) -> Source:
    """Opens one source.

    Args:
        config: its settings.
        name: what it is called.
        count: returns what counts a text's tokens, for formats with a budget.

    Raises:
        MmsftError: no such file, format, template or media root; all that is wrong.
    """
    problems = Problems()
    with problems.collect():
        found = _found(config, name)
    root: MediaRoot | None = None
    with problems.collect():
        root = _media_root(config.media_root, name) if config.media_root else None
    wordings: Wordings | None = None
    with problems.collect():
        if config.format != "auto":
            with _of_source(name):
                format_named(config.format)
        if config.templates:
            listed = read_wordings(assets.resolve(config.templates.file), config.templates.names)
            wordings = Wordings(listed, config.templates.use, config.templates.seed)
    problems.tell()
    rows, root = found.rows, root or found.root.resolve()
    if found.read is not None:
        return Source(name, config, rows, found.read, "", root)
    if wordings is not None:
        if wordings.use == "each":
            rows = EachWording(rows, tuple(wording.name for wording in wordings.wordings))
        return Source(name, config, rows, wordings, "", root, _reading(config, wordings, root), draws=True)
    given = {"count": count, "size": lambda: partial(_size, root, config.urls)}
    with _of_source(name):
        format = config.format
        if format == "auto":
            format = recognise([renamed(record, config.columns) for record in found.looked], config.path or name)
        read = with_options(format, config.options, given)
    asked = options_of(format)
    # Code of the user's may change, and so may the picture whose size a format asks for.
    told = None if format not in FORMATS or "size" in asked else _reading(config, format, root)
    return Source(name, config, rows, read, format, root, told, draws="seed" in asked)


def _reading(config: SourceConfig, by: Wordings | str, root: MediaRoot) -> str:
    """Returns all that decides how a source's rows are read."""
    where = root if isinstance(root, Path) else root.file.path
    return repr((by, sorted(config.columns.items()), config.tags, config.options, str(where)))


class _Found(NamedTuple):
    """A source's rows, some of them, where their media lie unless it is stated, and how an entry reads them."""

    rows: Rows
    looked: Sequence[Record]
    root: Path
    read: Format | None = None


def _found(config: SourceConfig, name: str) -> _Found:
    assert config.path is not None  # a recipe in the place of a path is opened by its sources
    if config.entry is not None:
        entry = read_entry(config.path, config.entry)
        return _Found(entry.open(), (), entry.root, entry.read)
    far = is_url(config.path)
    path = remote.place(config.path) if far else place(config.path)
    rows = _network(config, config.path) if far else None
    if config.sha256:
        check_sum(path, "sha256", config.sha256, f"source {name!r}")
    rows = rows or open_rows(path, config.split)
    looked = _sample(rows) if config.format == "auto" or config.columns else ()
    if config.columns:
        _check_columns(looked, config, name)
    return _Found(rows, looked, path if path.is_dir() else path.parent)


def _network(config: SourceConfig, url: str) -> Rows:
    rows = open_urls(url, config.urls or "public", open_file)
    in_shards = isinstance(rows, ShardRows)
    for setting, given in (
        ("split", config.split),
        ("sha256", in_shards and config.sha256),
        ("where", in_shards and config.where),
    ):
        if given:
            raise ConfigError(f"{url}: `{setting}` isn't for rows on the network; download them and name the file")
    return rows


def _media_root(stated: str, name: str) -> MediaRoot:
    root = place(stated)
    if root.is_dir():
        return root.resolve()
    if not root.is_file():
        raise ConfigError(f"source {name!r}: media_root {str(root)!r} is not a folder, and no tar or JSON of media")
    with _of_source(name):
        return open_archive(root.resolve())


@contextmanager
def _of_source(name: str) -> Iterator[None]:
    """Says which source an error is about."""
    try:
        yield
    except (ConfigError, DataError) as error:
        raise type(error)(f"source {name!r}: {error}") from None


def _sample(rows: Rows) -> list[Record]:
    """Returns some rows from everywhere in a file; those that can't be read are for the ledger."""
    found = []
    for row in spread(rows, np.arange(len(rows)), _LOOKED_AT):
        try:
            found.append(rows[int(row)])
        except DataError:
            continue
    return found


def _check_columns(looked: Sequence[Record], config: SourceConfig, name: str) -> None:
    names = dict.fromkeys(str(column) for record in looked for column in record)
    for new, old in config.columns.items():
        if names and old not in names:
            raise ConfigError(
                f"source {name!r}: columns: {new}: no row that was looked at has a column {old!r}{suggest(old, names)}"
                f"; there are {', '.join(names)}"
            )


def _size(root: MediaRoot, urls: Hosts | None, media: Media) -> Size:
    """Returns a picture's size."""
    file = resolve(media.ref, root, str(media), urls)
    try:
        found = replace(media, ref=file if isinstance(file, bytes) else str(file))
        return Size(*picture_size(file_of(found)))
    except DataError as error:
        raise DataError(f"{media}: {error}") from error


def shown_by(ref: str | bytes) -> bytes:
    """Returns what stands for a medium when rows are compared by what they show."""
    return ref if isinstance(ref, bytes) else os.path.normpath(ref).encode(errors="surrogateescape")
