"""Writes a recipe's rows into WebDataset shards, each with its media: resumable, and the same bytes each time."""

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

import webdataset

from mmsft.data.encoding import lost
from mmsft.data.formats.conversation import written
from mmsft.data.ledger import Entry
from mmsft.data.media_reader import file_of
from mmsft.data.mixture import Mixture
from mmsft.errors import ConfigError, DataError
from mmsft.types import Ints, Media

MANIFEST: Final = "build.json"
LOST: Final = "lost.jsonl"
_PIECE: Final = 1 << 20
"""Bytes that are written at once."""
_SAVED: Final = 32 << 20
"""Bytes of which the disk is told at once: it then has little left to do at the end."""
_BEHIND: Final = 8
"""Pieces that may be written and not summed yet."""
_SUFFIXES: Final = (
    (b"\xff\xd8\xff", "jpg"), (b"\x89PNG", "png"), (b"GIF8", "gif"), (b"BM", "bmp"), (b"fLaC", "flac"),
    (b"OggS", "ogg"), (b"ID3", "mp3"), (b"\x1aE\xdf\xa3", "webm"), (b"\x93NUMPY", "npy"), (b"ply", "ply"),
)  # fmt: skip
"""By the first bytes of a medium whose file's name tells nothing."""


class _Threads(NamedTuple):
    """One sums what is written, in order; the other has it saved to the disk."""

    summing: Executor
    saving: Executor


class _Summed:
    """Writes to a file in large pieces, which are summed and saved meanwhile.

    Attributes:
        written: bytes.
    """

    def __init__(self, file: BinaryIO, threads: _Threads) -> None:
        self.written = 0
        self._file = file
        self._threads = threads
        self._waiting: list[bytes] = []
        self._digest = hashlib.sha256()
        self._sums: deque[Future[None]] = deque()
        self._saves: deque[Future[None]] = deque()
        self._piece = self._saved = 0

    def write(self, data: bytes) -> int:
        """Takes bytes."""
        self._waiting.append(data)
        self.written += len(data)
        if self.written - self._piece >= _PIECE:
            self._hand_on()
        return len(data)

    def end(self) -> str:
        """Writes and saves what is left; returns the sha256 of all."""
        self._hand_on()
        self._file.flush()
        for waited in (*self._sums, *self._saves):
            waited.result()
        os.fsync(self._file.fileno())
        return self._digest.hexdigest()

    def _hand_on(self) -> None:
        piece = b"".join(self._waiting)
        self._waiting.clear()
        self._piece = self.written
        self._sums.append(self._threads.summing.submit(self._digest.update, piece))
        self._file.write(piece)
        if self.written - self._saved >= _SAVED:
            self._saved = self.written
            self._saves.append(self._threads.saving.submit(os.fsync, self._file.fileno()))
        for waiting, most in ((self._sums, _BEHIND), (self._saves, 1)):
            if len(waiting) > most:
                waiting.popleft().result()


@dataclass
class Shard:
    """A shard that is whole.

    Attributes:
        name: of the file.
        end: rows that are done with it, from the first shard on.
        rows: in it.
        bytes: of the file.
        sha256: of the file.
    """

    name: str
    end: int
    rows: int
    bytes: int
    sha256: str


@dataclass
class Build:
    """What is written of a recipe.

    Attributes:
        recipe: sum of the recipe, and of where its rows are.
        part: ``train`` or ``held_out``.
        shards: that are whole.
        lost: rows that can't be read, until the last shard.
    """

    recipe: str
    part: str
    shards: list[Shard] = field(default_factory=list)
    lost: int = 0

    @property
    def rows(self) -> int:
        """Rows in the shards."""
        return sum(shard.rows for shard in self.shards)

    @property
    def done(self) -> int:
        """Rows of the recipe that are written or lost."""
        return self.shards[-1].end if self.shards else 0


def build(
    mixture: Mixture,
    pairs: Ints,
    out: Path,
    part: str,
    size: int,
    tell: Callable[[str], object] = lambda _: None,
) -> Build:
    """Writes rows into ``PART-00000.tar`` and so on, from where an earlier build stopped.

    Args:
        mixture: of the recipe.
        pairs: [n, 2] (source, row) that are written, in this order.
        out: the folder.
        part: names the shards.
        size: bytes from which on a shard is full.
        tell: takes a line for each shard.

    Raises:
        ConfigError: the folder holds a build of another recipe, or refuses.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        found = _begun(mixture, pairs, out, part, size)
        with ThreadPoolExecutor(1) as summing, ThreadPoolExecutor(1) as saving:
            samples = (_sample(mixture, pair) for pair in pairs[found.done :])
            while found.done < len(pairs):
                _shard(found, samples, out, size, _Threads(summing, saving))
                tell(f"{found.shards[-1].name}: {found.done:,} of {len(pairs):,} rows")
    except OSError as error:
        raise ConfigError(
            f"{out}: can't be written: {error.strerror}; make room or name another folder, and the same command goes on"
        ) from None
    return found


def _begun(mixture: Mixture, pairs: Ints, out: Path, part: str, size: int) -> Build:
    """Returns what is there of the build; what was written behind its last whole shard is forgotten."""
    recipe = _sum(mixture, pairs, size)
    manifest = out / f"{part}.{MANIFEST}"
    if not manifest.is_file():
        (out / f"{part}.{LOST}").unlink(missing_ok=True)
        return Build(recipe, part)
    try:
        value: dict[str, Any] = json.loads(manifest.read_text(encoding="utf-8"))
        found = Build(value["recipe"], value["part"], [Shard(**shard) for shard in value["shards"]], value["lost"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{manifest}: can't be read ({error}); remove the folder and build again") from None
    if found.recipe != recipe:
        raise ConfigError(
            f"{out}: holds a build of another recipe, of other files or of another shard size; name another folder, or "
            "remove this one"
        )
    for shard in found.shards:
        if not (out / shard.name).is_file() or (out / shard.name).stat().st_size != shard.bytes:
            raise ConfigError(f"{out / shard.name}: isn't as it was built; remove the folder and build again")
    lines = (out / f"{part}.{LOST}").read_bytes().splitlines(keepends=True)[: found.lost] if found.lost else []
    (out / f"{part}.{LOST}").write_bytes(b"".join(lines))
    return found


def _sum(mixture: Mixture, pairs: Ints, size: int) -> str:
    """Returns a sum of what decides a build's bytes, as far as that can be told without reading all rows."""
    sources = [(source.name, source.config.model_dump_json(), len(source.rows)) for source in mixture.sources]
    return hashlib.sha256(repr((sources, size)).encode() + pairs.tobytes()).hexdigest()


def _shard(found: Build, samples: Iterator[dict[str, bytes] | Entry], out: Path, size: int, threads: _Threads) -> None:
    """Writes the next shard aside, and gives it its name once it is whole."""
    name = f"{found.part}-{len(found.shards):05d}.tar"
    aside = out / f".{name}"
    end, rows = found.done, 0
    entries: list[bytes] = []
    with aside.open("wb") as file:
        summed = _Summed(file, threads)
        writer = webdataset.TarWriter(summed, mtime=0, encoder=False)
        for sample in samples:
            if isinstance(sample, Entry):
                line = {"row": sample.row, "fate": sample.fate, "reason": sample.reason}
                entries.append(json.dumps(line, ensure_ascii=False).encode() + b"\n")
            else:
                writer.write({"__key__": f"{end:09d}", **sample})
                rows += 1
            end += 1
            if summed.written >= size:
                break
        writer.close()
        digest = summed.end()
    with (out / f"{found.part}.{LOST}").open("ab") as log:
        log.writelines(entries)
    os.replace(aside, out / name)
    found.shards.append(Shard(name, end, rows, summed.written, digest))
    found.lost += len(entries)
    manifest = out / f"{found.part}.{MANIFEST}"
    beside = manifest.with_name(f".{manifest.name}")
    beside.write_text(json.dumps(asdict(found), indent=1), encoding="utf-8")
    os.replace(beside, manifest)


def _sample(mixture: Mixture, pair: Ints) -> dict[str, bytes] | Entry:
    """Returns a row's files by suffix, or why there are none."""
    try:
        talk = mixture.conversation(pair)
        names: dict[Media, str] = {}
        files: dict[str, bytes] = {}
        for media in dict.fromkeys(medium for turn in talk.turns for medium in turn.media):
            data = _bytes(media)
            names[media] = f"{len(files)}.{_suffix(media, data)}"
            files[names[media]] = data
    except DataError as error:
        return lost(mixture.row_id(pair), error)
    row = {"id": talk.id, "source": mixture.sources[int(pair[0])].name, **written(talk, names)}
    return {"json": json.dumps(row, ensure_ascii=False, sort_keys=True).encode(), **files}


def _bytes(media: Media) -> bytes:
    file = file_of(media)
    try:
        return file if isinstance(file, bytes) else file.read_bytes()
    except OSError as error:
        raise DataError(f"{media}: can't be read: {error.strerror}; fetch it again, or leave its row out") from None


def _suffix(media: Media, data: bytes) -> str:
    stated = Path(media.ref).suffix[1:].lower() if isinstance(media.ref, str) else ""
    known = next((suffix for begin, suffix in _SUFFIXES if data.startswith(begin)), "bin")
    return stated if stated.isalnum() else known
