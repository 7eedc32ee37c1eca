"""A source opened: the rows of a file and how each becomes a conversation."""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from mmsft import assets
from mmsft.config import SourceConfig
from mmsft.data import remote
from mmsft.data.download import Hosts, is_url
from mmsft.data.formats import FORMATS, IN_COLUMNS, Format, format_named, options_of, with_options
from mmsft.data.formats.media_tags import media_in_columns
from mmsft.data.formats.recognise import recognise
from mmsft.data.formats.regions import Size
from mmsft.data.hub import place
from mmsft.data.labels import spoken
from mmsft.data.media import resolve
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
    root: Path
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
        assert config.path is not None  # a recipe in the place of a path is opened by its sources
        rows, root = _network(config, config.path) if is_url(config.path) else _local(config, config.path, name)
        _check_columns(rows, config, name)
    with problems.collect():
        if config.media_root:
            root = place(config.media_root)
            if not root.is_dir():
                raise ConfigError(f"source {name!r}: media_root {str(root)!r} is not a folder")
    wordings: Wordings | None = None
    with problems.collect():
        if config.format != "auto":
            with _of_source(name):
                format_named(config.format)
        if config.templates:
            found = read_wordings(assets.resolve(config.templates.file), config.templates.names)
            wordings = Wordings(found, config.templates.use, config.templates.seed)
    problems.tell()
    root = root.resolve()
    if wordings is not None:
        if wordings.use == "each":
            rows = EachWording(rows, tuple(wording.name for wording in wordings.wordings))
        return Source(name, config, rows, wordings, "", root, _reading(config, wordings, root), draws=True)
    given = {"count": count, "size": lambda: partial(_size, root, config.urls)}
    with _of_source(name):
        format = recognise(_sample(rows, config.columns), config.path) if config.format == "auto" else config.format
        read = with_options(format, config.options, given)
    asked = options_of(format)
    # Code of the user's may change, and so may the picture whose size a format asks for.
    told = None if format not in FORMATS or "size" in asked else _reading(config, format, root)
    return Source(name, config, rows, read, format, root, told, draws="seed" in asked)


def _reading(config: SourceConfig, by: Wordings | str, root: Path) -> str:
    """Returns all that decides how a source's rows are read."""
    return repr((by, sorted(config.columns.items()), config.options, str(root)))


def _local(config: SourceConfig, stated: str, name: str) -> tuple[Rows, Path]:
    """Opens a source's rows, and tells where their media lie unless it is stated."""
    path = place(stated)
    if config.sha256:
        _check_sum(path, config.sha256, name)
    return open_rows(path, config.split), path if path.is_dir() else path.parent


def _network(config: SourceConfig, url: str) -> tuple[Rows, Path]:
    rows = open_urls(url, config.urls or "public", open_file)
    in_shards = isinstance(rows, ShardRows)
    for setting, given in (
        ("split", config.split),
        ("sha256", in_shards and config.sha256),
        ("where", in_shards and config.where),
    ):
        if given:
            raise ConfigError(f"{url}: `{setting}` isn't for rows on the network; download them and name the file")
    if config.sha256:
        _check_sum(remote.place(url), config.sha256, url)
    return rows, remote.folder()


def _check_sum(path: Path, wanted: str, name: str) -> None:
    if not path.is_file():
        raise ConfigError(f"source {name!r}: sha256 is of a file, and {path} is none; leave it out, or mend the path")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != wanted:
        raise ConfigError(
            f"source {name!r}: {path} has sha256 {found}, the recipe states {wanted}: it is another file, or it was "
            "changed; fetch it again, or state its sum"
        )


@contextmanager
def _of_source(name: str) -> Iterator[None]:
    """Says which source an error is about."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"source {name!r}: {error}") from None


def _sample(rows: Rows, columns: Mapping[str, str]) -> list[Record]:
    """Returns some rows from everywhere in a file, renamed; those that can't be read are for the ledger."""
    found = []
    for row in spread(rows, np.arange(len(rows)), _LOOKED_AT):
        try:
            found.append(renamed(rows[int(row)], columns))
        except DataError:
            continue
    return found


def _check_columns(rows: Rows, config: SourceConfig, name: str) -> None:
    if not config.columns:
        return
    names = dict.fromkeys(str(column) for record in _sample(rows, {}) for column in record)
    for new, old in config.columns.items():
        if names and old not in names:
            raise ConfigError(
                f"source {name!r}: columns: {new}: no row that was looked at has a column {old!r}{suggest(old, names)}"
                f"; there are {', '.join(names)}"
            )


def _size(root: Path, urls: Hosts | None, media: Media) -> Size:
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
