"""Files by URL: fetched once into a bounded cache, from public addresses unless a source allows others."""

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple, get_args
from urllib.parse import unquote, urlsplit

from pydantic import ByteSize, TypeAdapter, ValidationError

from mmsft import assets
from mmsft.data.download import Hosts, Passing, download, shown
from mmsft.errors import ConfigError, DataError

try:
    import fcntl
except ImportError:  # Windows: processes may then fetch a file twice, which does no harm
    fcntl = None  # type: ignore[assignment]

LIMIT: Final = "MMSFT_REMOTE_LIMIT"
"""The environment's variable for the most bytes of shards and media that are kept, e.g. ``200 GB``."""
_DEFAULT: Final = "50 GB"
_PAUSES: Final = (0.5, 2.0)
"""Seconds before a file is asked for again, where another try may help."""
_STALE: Final = 24 * 3600


@dataclass(frozen=True, slots=True)
class Fetched:
    """What is remembered of a file, also when it is no longer kept.

    Attributes:
        url: where it came from.
        hosts: that may be asked for it.
        size: in bytes.
        version: what the server calls it, its ETag or date; empty where it says nothing.
        kept: it stays, whatever the limit.
        rows: in it, where that was counted; -1 = it wasn't.
    """

    url: str
    hosts: Hosts
    size: int
    version: str
    kept: bool = False
    rows: int = -1


class Link(NamedTuple):
    """A medium on the network.

    Attributes:
        hosts: that may be asked for it.
        url: of the file.
    """

    hosts: Hosts
    url: str

    def __str__(self) -> str:
        return f"url:{self.hosts}:{self.url}"

    def fetch(self) -> Path:
        """Returns the file; as of `fetched`."""
        return fetched(self.url, self.hosts)


def link(ref: str) -> Link | None:
    """Returns what a medium's ref names on the network, as `Link` writes it; None if it names nothing there."""
    begin, _, url = ref.removeprefix("url:").partition(":")
    if not ref.startswith("url:") or begin not in get_args(Hosts):
        return None
    return Link("any" if begin == "any" else "public", url)


def folder() -> Path:
    """Returns the folder of fetched files."""
    return assets.cache_dir() / "remote"


def place(url: str) -> Path:
    """Returns where a URL's file lies once it is fetched: under its own name, and a hash of the URL."""
    name = re.sub(r"[^\w.-]", "_", unquote(PurePosixPath(urlsplit(url).path).name))[-80:]
    return folder() / f"{hashlib.blake2b(url.encode(), digest_size=8).hexdigest()}-{name or 'file'}"


def remembered(path: Path) -> Fetched | None:
    """Returns what is known of a fetched file, be it kept or not; None if it was never fetched."""
    try:
        return Fetched(**json.loads(_beside(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def remember(path: Path, told: Fetched) -> None:
    """Writes down what is known of a fetched file."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.told")
    aside.write_text(json.dumps(asdict(told)), encoding="utf-8")
    os.replace(aside, _beside(path))


def fetched(url: str, hosts: Hosts = "public", *, keep: bool = False) -> Path:
    """Returns the file of a URL, fetched unless it is there already; of several processes one fetches it.

    Args:
        url: http or https.
        hosts: that may be asked.
        keep: the file stays; else the least recently used make room for others once there are more than `LIMIT` bytes.

    Raises:
        DataError: it can't be fetched, its host may not be asked, or it isn't what it was when it was fetched before.
    """
    path = place(url)
    if _used(path):
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path):
            if not _used(path):
                _fetch(url, hosts, path, keep)
    except OSError as error:
        raise DataError(f"{shown(url)}: can't be kept in {folder()}: {error}; make room, or set MMSFT_CACHE") from None
    return path


def restored(path: Path) -> Path:
    """Returns a fetched file that had to make room for others, fetched again; another path as it is.

    Raises:
        DataError: as of `fetched`.
    """
    if path.parent != folder() or path.exists():
        return path
    told = remembered(path)
    return path if told is None else fetched(told.url, told.hosts, keep=told.kept)


def _used(path: Path) -> bool:
    """Tells whether a file is there, and notes that it is used."""
    try:
        # The time of its last change stays: by it a reader knows that the file is what it opened.
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
    except OSError:
        return False
    return True


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.told.json")


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Lets one process at a time fetch a file; the kernel gives the lock back when a process dies."""
    with path.with_name(f".{path.name}.lock").open("a") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fetch(url: str, hosts: Hosts, path: Path, keep: bool) -> None:
    aside = path.with_name(f".{path.name}.part")
    known = remembered(path)
    try:
        for pause in (*_PAUSES, None):
            try:
                came = download(url, hosts, aside)
                break
            except Passing as error:
                if pause is None:
                    raise DataError(f"{error}; tried {len(_PAUSES) + 1} times: try again later") from None
                time.sleep(pause)
        told = Fetched(url, hosts, *came, keep)
        if known is not None:
            _refuse_changed(known, told)
            told = replace(told, rows=known.rows)
        if not keep:
            _make_room(told.size)
        remember(path, told)
        os.utime(aside, ns=(time.time_ns(), 0))  # the same when it is fetched again
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _refuse_changed(known: Fetched, told: Fetched) -> None:
    if known.size != told.size or (known.version and told.version and known.version != told.version):
        raise DataError(
            f"{shown(told.url)}: changed since it was fetched first: it has {told.size:,} bytes, version "
            f"{told.version or 'unknown'}, and had {known.size:,}, version {known.version or 'unknown'}. A run that "
            "goes on would read other rows; put the old file back, or, for a new run, remove "
            f"{_beside(place(told.url))}"
        )


def _make_room(size: int) -> None:
    """Takes away what was used the longest ago, until a file of this size finds room."""
    limit, found = _limit(), []
    for path in folder().iterdir():
        with suppress(OSError):  # another process may take it away meanwhile
            stat = path.stat()
            if path.name.startswith("."):
                if stat.st_mtime < time.time() - _STALE:
                    path.unlink()  # of a process that was killed
            elif not path.name.endswith(".told.json"):
                told = remembered(path)
                if told is None or not told.kept:
                    found.append((stat.st_atime, stat.st_size, path))
    used = sum(bytes for _, bytes, _ in found)
    for _, bytes, path in sorted(found):
        if used + size <= limit:
            return
        path.unlink(missing_ok=True)
        used -= bytes


def _limit() -> int:
    stated = os.environ.get(LIMIT, _DEFAULT)
    try:
        return int(TypeAdapter(ByteSize).validate_python(stated))
    except ValidationError:
        raise ConfigError(f"{LIMIT}={stated!r} is no size; write e.g. 200 GB") from None
