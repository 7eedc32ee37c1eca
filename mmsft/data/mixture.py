"""A recipe opened: the rows of all its sources, which are trained on and which are held out."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mmsft import assets
from mmsft.config import RecipeConfig, SourceConfig
from mmsft.data.formats import FORMATS, Format, format_named
from mmsft.data.formats.media_tags import media_in_columns
from mmsft.data.media import resolve
from mmsft.data.order import Numbers, permutation
from mmsft.data.shared import beginning, group, key
from mmsft.data.sources import Rows, open_rows
from mmsft.data.split import Drawn, draw
from mmsft.errors import ConfigError, DataError, Problems, suggest
from mmsft.types import Conversation, Ints, Media, Part, Record, Turn

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Source:
    """One of a recipe's sources, opened."""

    name: str
    config: SourceConfig
    rows: Rows
    format: Format
    root: Path

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
        record = self.rows[row]
        conversation = self.format(record, self.rows.row_id(row))
        tags = {name: str(record[name]) for name in self.config.tags if name in record}
        return replace(conversation, tags={**conversation.tags, **tags})

    def media(self, row: int) -> Sequence[Media]:
        """Reads a row's media as they are written; where its columns name them all, without reading the turns.

        Raises:
            DataError: the row can't be read, or isn't in the format.
        """
        row_id = self.rows.row_id(row)
        listed = media_in_columns(self.rows[row], row_id) if self.format in FORMATS.values() else None
        if listed is not None:
            return listed
        return [medium for turn in self.written(row).turns for medium in turn.media]

    def keeps(self, record: Record) -> bool:
        """Tells whether the source's `where` admits the row."""
        return all(str(record.get(name)) in values for name, values in self.config.where.items())

    def _locate(self, turn: Turn, row_id: str) -> Turn:
        if not turn.media:
            return turn
        return replace(turn, parts=tuple(self._place(part, row_id) for part in turn.parts))

    def _place(self, part: Part, row_id: str) -> Part:
        if not isinstance(part, Media):
            return part
        file = resolve(part.ref, self.root, row_id)
        return replace(part, ref=file if isinstance(file, bytes) else str(file))


class Mixture:
    """The rows of a recipe.

    Opening one finds the rows' places. Only three settings need more, and read every row once: `where` looks at
    columns, a validation `fraction` at the media, since rows of one picture stay together, and `join` at what rows
    begin with.

    Attributes:
        sources: the sources, the validation file's last where there is one.
        train: [n, 2] (source, row) of what is trained on, in the order of the sources.
        held_out: [m, 2] likewise of what is held out, shuffled, so that its first rows are a sample of all.
        groups: [n] the same number for rows of `train` that stay together since they begin alike; None = none do.
    """

    def __init__(self, recipe: RecipeConfig) -> None:
        """Opens the sources.

        Raises:
            MmsftError: a source, format or filter that selects nothing; of several sources, each that fails.
        """
        configs = list(recipe.sources)
        split = recipe.validation
        if split and split.file:
            configs.append(split.file)
        names = (*recipe.source_names, "validation")
        problems = Problems()
        opened: list[tuple[Source, Ints]] = []
        for config, name in zip(configs, names, strict=False):
            with problems.collect():
                source = open_source(config, name)
                opened.append((source, _pick(source)))
        problems.tell()
        self.sources = tuple(source for source, _ in opened)
        pairs = [np.stack([np.full(len(rows), number), rows], 1) for number, (_, rows) in enumerate(opened)]
        held = np.zeros(len(pairs), bool)
        if split and split.file:
            held[-1] = True
        elif split and split.source:
            held[recipe.source_names.index(split.source)] = True
        train = np.concatenate([rows for rows, out in zip(pairs, held, strict=True) if not out])
        out = np.concatenate([train[:0], *(rows for rows, out in zip(pairs, held, strict=True) if out)])
        if split and split.fraction:
            drawn = draw((self._shown(pair) for pair in train), split.seed, split.fraction)
            _refuse_lopsided(drawn, split.fraction)
            train, out = train[~drawn.held_out], train[drawn.held_out]
        self.train: Ints = train
        self.held_out: Ints = out[permutation(split.seed, 0, len(out))] if split else out
        self._joined_at_most = recipe.joined_at_most if recipe.join else None
        self.groups: Numbers | None = self.together(train)

    def together(self, pairs: Ints) -> Numbers | None:
        """Returns a number for each of the rows [n, 2], the same for those that begin alike; None = none are joined."""
        if self._joined_at_most is None:
            return None
        return group(np.fromiter(map(self._beginning, pairs), np.uint64, len(pairs)), self._joined_at_most)

    def conversation(self, pair: Ints) -> Conversation:
        """Reads the row (source, row)."""
        return self.sources[int(pair[0])].conversation(int(pair[1]))

    def row_id(self, pair: Ints) -> str:
        """Returns the id of the row (source, row), also of one that can't be read."""
        return self.sources[int(pair[0])].rows.row_id(int(pair[1]))

    def _beginning(self, pair: Ints) -> int:
        """Returns a key of what rows of one source can share with the row; one that can't be read is by itself."""
        source, row = int(pair[0]), int(pair[1])
        try:
            return key((source, beginning(self.sources[source].written(row))))
        except DataError:
            return key((source, row))

    def _shown(self, pair: Ints) -> list[bytes]:
        """Returns what a row shows: its media as it writes them, wherever the data lies, or itself."""
        try:
            media = self.sources[int(pair[0])].media(int(pair[1]))
        except DataError:
            return []
        return [_bytes(medium.ref) for medium in media] or [_bytes(self.row_id(pair))]


def _refuse_lopsided(drawn: Drawn, fraction: float) -> None:
    """Refuses a split without one of its sides, and warns of one that is far from what was asked for."""
    rows, held = len(drawn.held_out), int(drawn.held_out.sum())
    connected = ""
    if drawn.largest > 1:
        connected = (
            f"; rows with a picture in common stay together, and {drawn.largest} of them are connected so: where that "
            "leaves no choice, hold out a `file` or a `source`"
        )
    if not 0 < held < rows:
        raise ConfigError(f"validation.fraction {fraction:g} holds out {held} of {rows} rows; take another{connected}")
    # Of fewer rows chance alone would explain it.
    if max(held, fraction * rows) > 100 and not 0.5 < held / (fraction * rows) < 2:
        log.warning("validation.fraction %g holds out %d of %d rows%s", fraction, held, rows, connected)


def _bytes(ref: str | bytes) -> bytes:
    return ref if isinstance(ref, bytes) else os.path.normpath(ref).encode(errors="surrogateescape")


def open_source(config: SourceConfig, name: str) -> Source:
    """Opens one source.

    Raises:
        MmsftError: no such file, format or media root; all that is wrong.
    """
    problems = Problems()
    with problems.collect():
        path = assets.resolve(config.path)
        rows, root = open_rows(path), path.parent
    with problems.collect():
        if config.media_root:
            root = assets.resolve(config.media_root)
            if not root.is_dir():
                raise ConfigError(f"source {name!r}: media_root {str(root)!r} is not a folder")
    with problems.collect():
        try:
            read = format_named(config.format)
        except ConfigError as error:
            raise ConfigError(f"source {name!r}: {error}") from None
    problems.tell()
    return Source(name, config, rows, read, root.resolve())


def _pick(source: Source) -> Ints:
    """Returns the rows that `where` and `limit` leave."""
    rows = np.arange(len(source.rows))
    if source.config.where:
        rows = np.array([row for row in rows if _kept(source, int(row))], np.int64)
    rows = rows[: source.config.limit]
    if not len(rows):
        raise ConfigError(f"source {source.name!r}: no row is left{_why_none(source)}")
    return rows


def _kept(source: Source, row: int) -> bool:
    try:
        return source.keeps(source.rows[row])
    except DataError:
        return True  # a row that can't be read is for the ledger, not for a filter


def _why_none(source: Source) -> str:
    if not source.config.where or not len(source.rows):
        return "; the file has none"
    first: Mapping[str, object] = source.rows[0]
    for name, values in source.config.where.items():
        if name not in first:
            return f" by `where`: rows have no column {name!r}{suggest(name, first)}"
        return f" by `where: {{{name}: {', '.join(values)}}}`; the first row has {first[name]!r}"
    return ""
