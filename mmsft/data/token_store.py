"""Tokenised rows on disk, under the hashes of all that decides them, so that a row is tokenised once."""

import hashlib
import json
import logging
import os
import sqlite3
import struct
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Final
from zlib import crc32

import numpy as np

from mmsft.data.chat import ChatEncoder
from mmsft.errors import DataError
from mmsft.types import Encoded, Media, Placed, Segment, Targets

log = logging.getLogger(__name__)

_FORMAT: Final = 1
"""Of the entries; others aren't read."""
_DAY: Final = 24 * 3600
_PATIENCE: Final = 10.0
"""Seconds that a process waits for others to have written."""
_HEADER: Final = struct.Struct("<II")
"""Begins an entry: the checksum of all that follows it, and the bytes of the JSON that comes next."""
_PACKAGES: Final = ("transformers", "tokenizers", "jinja2")
_TABLE: Final = "create table if not exists rows (key blob primary key, entry blob not null)"

# A connection is of one process; a fork's child leaves its parent's alone, since closing it would let go of its locks.
_connections: dict[tuple[int, Path], sqlite3.Connection] = {}
_off: set[Path] = set()


@dataclass(frozen=True, slots=True)
class TokenStore:
    """One encoder's rows; picklable, so that data workers use it. What is wrong with it never stops a training.

    Attributes:
        file: the database, among those of other encoders.
        limit: bytes of all of them together.
    """

    file: Path
    limit: int

    @classmethod
    def of(cls, root: Path, limit: int, encoder: ChatEncoder) -> "TokenStore":
        """Returns the store of an encoder; nothing is made yet."""
        return cls(root / f"{identity(encoder)}.sqlite", limit)

    def get(self, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        """Returns the entries that are there."""
        wanted = list(keys)
        found: dict[bytes, bytes] = {}
        connection = self._connection()
        if connection is None or not wanted:
            return found
        try:
            for start in range(0, len(wanted), 500):
                some = wanted[start : start + 500]
                marks = ",".join("?" * len(some))
                found.update(connection.execute(f"select key, entry from rows where key in ({marks})", some))
        except sqlite3.Error as error:
            self._spoilt(error)
        return found

    def put(self, entries: Mapping[bytes, bytes]) -> None:
        """Takes entries."""
        connection = self._connection()
        if connection is None or not entries:
            return
        try:
            if not self._room(sum(map(len, entries.values()))):
                return
            with connection:
                connection.executemany("insert or replace into rows values (?, ?)", entries.items())
        except sqlite3.Error as error:
            if "locked" not in str(error):  # others write all the time; these rows are tokenised again another time
                self._spoilt(error)

    def _connection(self) -> sqlite3.Connection | None:
        which = os.getpid(), self.file
        if which not in _connections and self.file not in _off:
            try:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                connection = sqlite3.connect(self.file, timeout=_PATIENCE)
                # No write-ahead log: it needs memory that processes share, which a network's file system doesn't give.
                connection.execute("pragma journal_mode = truncate")
                connection.execute("pragma synchronous = off")  # what a power cut takes is tokenised again
                connection.execute(_TABLE)
                os.utime(self.file)  # what was used last goes last
            except (OSError, sqlite3.Error) as error:
                self._spoilt(error)
                return None
            _connections[which] = connection
        return None if self.file in _off else _connections[which]

    def _room(self, size: int) -> bool:
        """Makes room, if need be, of encoders that nobody has used for a day."""
        found = _databases(self.file.parent)
        used = sum(database.size for database in found.values())
        for file, database in sorted(found.items(), key=lambda item: item[1].used):
            if used + size <= self.limit:
                break
            if file != self.file and database.used < time.time() - _DAY:
                _remove(file)
                used -= database.size
        if used + size > self.limit:
            self._stop(
                f"is full ({self.limit / 1e9:g} GB); what isn't in it is tokenised at each use. Raise `tokens.limit`, "
                "or delete files in it"
            )
            return False
        return True

    def _spoilt(self, error: Exception) -> None:
        if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
            _remove(self.file)
            self._stop(f"{self.file.name} is spoilt ({error}) and taken away; the next run begins a new one")
        else:
            self._stop(f"can't be used ({error}); name another folder with `tokens.folder`")

    def _stop(self, why: str) -> None:
        _off.add(self.file)
        log.warning("store of tokens: %s %s", self.file.parent, why)


@dataclass(frozen=True, slots=True)
class _Database:
    """A store's file and what belongs to it: bytes, and when it was last used."""

    size: int
    used: float


def _databases(root: Path) -> dict[Path, _Database]:
    found: dict[Path, _Database] = {}
    for file in root.glob("*.sqlite"):
        with suppress(OSError):  # another process may take it away meanwhile
            sizes = [path.stat().st_size for path in root.glob(f"{file.name}*")]
            found[file] = _Database(sum(sizes), file.stat().st_mtime)
    return found


def _remove(file: Path) -> None:
    for path in file.parent.glob(f"{file.name}*"):
        with suppress(OSError):
            path.unlink()


def identity(encoder: ChatEncoder) -> str:
    """Returns the hash of what decides a row's tokens, apart from the row and what its media occupy."""
    tokenizer = encoder.tokenizer.hf
    told = [
        _FORMAT,
        hashlib.blake2b(tokenizer.backend_tokenizer.to_str().encode(), digest_size=16).hexdigest(),
        sorted(encoder.tokenizer.named.items()),
        repr(encoder.template),
        (encoder.learn, encoder.length, encoder.too_long, encoder.data_tokens, repr(encoder.sides), encoder.loss_by),
        json.dumps(encoder.template_kwargs, sort_keys=True, default=repr),
        _code(),
    ]
    return hashlib.blake2b(repr(told).encode(), digest_size=16).hexdigest()


@cache
def _code() -> str:
    """Returns the versions of the packages that make tokens, and the hash of mmsft's own code for it."""
    here = Path(__file__).parent
    files = b"\0".join(file.read_bytes() for file in sorted([*here.rglob("*.py"), *here.rglob("*.jinja")]))
    versions = [version(package) for package in _PACKAGES]
    return f"{versions} {hashlib.blake2b(files, digest_size=16).hexdigest()}"


def entry_of(encoded: Encoded, encoder: ChatEncoder) -> bytes | None:
    """Returns an encoded row as bytes, or None.

    It can't be kept where a medium is no file, which would be kept twice, where its adapter reads what is asked, in a
    tokenizer's ids of its own, and where media are read smaller.

    Args:
        encoded: the row.
        encoder: its.
    """
    if encoded.shrunk:  # what is read smaller depends on how many tokens whole media take
        return None
    for medium in (placed.media for placed in encoded.media):
        if isinstance(medium.ref, bytes) or medium.modality in encoder.contexts or not _written(medium.options):
            return None
    media = [
        (placed.media.modality, placed.media.ref, placed.media.options, _occupied(encoder, placed.media))
        for placed in encoded.media
    ]
    slots = [len(placed.slots) for placed in encoded.media]
    targets = encoded.targets
    segments = [(segment.start, segment.end, segment.parent) for segment in encoded.segments]
    note = encoded.note.replace(encoded.id, _ID)
    told = [len(encoded), len(targets), segments, media, slots, note, encoded.left_out, bool(encoded.rows)]
    told.append(encoded.values)
    head = json.dumps(told, ensure_ascii=False).encode(errors="surrogatepass")
    numbers = [encoded.input_ids, encoded.positions, targets.position, targets.token, targets.group]
    numbers += [placed.slots for placed in encoded.media]
    body = np.concatenate(numbers).astype("<i4").tobytes() + targets.weight.astype("<f4").tobytes()
    return _HEADER.pack(crc32(body, crc32(head)), len(head)) + head + body


def encoded_of(entry: bytes, id: str, source: int, encoder: ChatEncoder) -> Encoded | None:
    """Returns an entry as an encoded row; None where it isn't whole, or a medium now occupies something else.

    Args:
        entry: as `entry_of` made it.
        id: the row's.
        source: number of the recipe's source it comes from.
        encoder: the row's.
    """
    if len(entry) < _HEADER.size:
        return None
    checksum, length = _HEADER.unpack_from(entry)
    start = _HEADER.size + length
    if crc32(entry[_HEADER.size :]) != checksum:
        return None
    tokens, targets, segments, media, slots, note, left_out, joined, values = json.loads(entry[_HEADER.size : start])
    ends = list(accumulate([tokens, tokens, targets, targets, targets, *slots]))
    numbers = np.frombuffer(entry, "<i4", ends[-1], start).astype(np.int64)
    weight = np.frombuffer(entry, "<f4", targets, start + 4 * len(numbers)).astype(np.float32)
    input_ids, positions, position, token, group, *places = (numbers[at:end] for at, end in pairwise([0, *ends]))
    placed = []
    for (modality, ref, options, occupied), where in zip(media, places, strict=True):
        medium = Media(modality, ref, tuple((name, value) for name, value in options))
        try:
            if _occupied(encoder, medium) != occupied:
                return None
        except DataError:
            return None  # told by who reads the row anew
        placed.append(Placed(medium, where))
    return Encoded(
        id=id,
        input_ids=input_ids,
        positions=positions,
        segments=tuple(Segment(*segment) for segment in segments),
        targets=Targets(position, token, weight, group),
        media=tuple(placed),
        source=source,
        note=note.replace(_ID, id),
        left_out=left_out,
        values=tuple(values),
        rows=(id,) if joined else (),
    )


_ID: Final = "\0id\0"
"""Stands in an entry's note for the row's id."""


def _written(options: Iterable[tuple[str, Any]]) -> bool:
    """Tells whether a medium's options are the same once they were written as JSON and read."""
    return all(isinstance(value, str | int | float | None) for _, value in options)


def _occupied(encoder: ChatEncoder, media: Media) -> str:
    """Returns in brief what a medium occupies, and whether its adapter reads what is asked."""
    told = (encoder.slots(media), media.modality in encoder.contexts)
    return hashlib.blake2b(repr(told).encode(), digest_size=8).hexdigest()


def key_of(*parts: Any) -> bytes:
    """Returns the key of a row by all that decides what it says.

    Args:
        parts: as JSON has them; bytes count by their hash, other things by what they say.
    """
    text = json.dumps(parts, ensure_ascii=False, default=_told)
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()


def _told(value: Any) -> str:
    if isinstance(value, bytes):
        return f"bytes {hashlib.blake2b(value, digest_size=16).hexdigest()}"
    return f"{type(value).__name__} {value!r}"
