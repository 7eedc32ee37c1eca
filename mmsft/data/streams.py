"""Rows of many shards on the network: each shard is fetched when the order of rows comes to it."""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import numpy as np

from mmsft.data import remote
from mmsft.data.download import Hosts
from mmsft.data.folders import BUILD
from mmsft.data.rows import Borders, Rows
from mmsft.data.wordings import EachWording
from mmsft.errors import ConfigError, DataError
from mmsft.types import Ints, Record

log = logging.getLogger(__name__)

Open = Callable[[Path], Rows]
"""Opens a file of rows."""


@dataclass(frozen=True, slots=True)
class Shard:
    """A file of rows on the network.

    Attributes:
        url: where it lies.
        rows: in it.
        size: in bytes, where that is stated; else -1.
    """

    url: str
    rows: int
    size: int = -1


@dataclass(frozen=True)
class ShardRows:
    """The rows of shards, one after the other; reading one fetches its shard.

    Attributes:
        shards: the files.
        hosts: that may be asked.
        open_file: opens a shard that was fetched.
    """

    shards: Sequence[Shard]
    hosts: Hosts
    open_file: Open

    def __len__(self) -> int:
        return len(self._borders)

    def row_id(self, index: int) -> str:
        """Returns ``train-000003.tar:17``: the shard, and the row in it, counted from 1."""
        shard, row = self._borders.place(index, "the source")
        return f"{self.shards[shard].url.rpartition('/')[2]}:{row + 1}"

    def __getitem__(self, index: int) -> Record:
        """Reads a row.

        Raises:
            IndexError: there is no such row.
            DataError: the shard can't be fetched, has fewer rows than it is said to, or the row can't be read.
        """
        number, row = self._borders.place(index, "the source")
        shard = self.shards[number]
        remote.fetched(shard.url, self.hosts)  # each time: it may have had to make room meanwhile
        rows = _opened(shard, self.open_file)
        if row >= len(rows):
            raise DataError(
                f"{self.row_id(index)}: the shard has {len(rows)} rows, and {shard.rows} were counted; write it again"
            )
        return rows[row]

    def shards_of(self, index: Ints) -> Ints:
        """Returns the number of the shard in which each of the rows [n] lies."""
        return np.searchsorted(self._borders.starts, index, side="right") - 1

    @cached_property
    def _borders(self) -> Borders:
        return Borders.of(shard.rows for shard in self.shards)


def shards_of(rows: Rows, index: Ints) -> Ints | None:
    """Returns the shard of each of the rows [n], where shards are fetched one by one; else None."""
    if isinstance(rows, EachWording):
        return shards_of(rows.rows, index // len(rows.names))
    return rows.shards_of(index) if isinstance(rows, ShardRows) else None


def spread(rows: Rows, index: Ints, count: int) -> Ints:
    """Returns so many of the rows [n] from everywhere among them; of shards, the first ones: others needn't be fetched.

    Args:
        rows: of a source.
        index: of those among which it is chosen.
        count: how many at most.
    """
    if shards_of(rows, index[:1]) is not None:
        return index[:count]
    places = np.linspace(0, len(index) - 1, min(len(index), count)).astype(np.int64)
    return index[np.unique(places)]


# An order reads a few shards at a time.
@lru_cache(maxsize=16)
def _opened(shard: Shard, open_file: Open) -> Rows:
    path = remote.place(shard.url)
    size = path.stat().st_size
    if shard.size not in (-1, size):
        raise DataError(f"{path}: has {size:,} bytes, and {shard.size:,} were built; upload or fetch the shard again")
    return open_file(path)


def open_urls(path: str, hosts: Hosts, open_file: Open) -> Rows:
    """Opens rows on the network.

    Args:
        path: the URL of a file, which is fetched whole and kept; of a ``….build.json`` of `mmsft data build`; or of
            several shards, as ``https://host/train-{000000..000099}.tar``.
        hosts: that may be asked.
        open_file: opens a file that was fetched.

    Raises:
        ConfigError: a file can't be fetched, or isn't of the types that are known.
        DataError: a file is empty, or not a list of rows.
    """
    try:
        if path.endswith(BUILD):
            return ShardRows(_built(path, hosts), hosts, open_file)
        urls = expanded(path)
        if len(urls) == 1:
            return open_file(remote.fetched(urls[0], hosts, keep=True))
        return ShardRows([_counted(url, hosts, open_file) for url in urls], hosts, open_file)
    except DataError as error:
        raise ConfigError(str(error)) from None


def expanded(path: str) -> list[str]:
    """Returns the paths or URLs that braces stand for, as WebDataset writes them.

    Raises:
        ConfigError: the braces aren't balanced.
    """
    from braceexpand import UnbalancedBracesError, braceexpand  # type: ignore[attr-defined]

    try:
        return list(braceexpand(path))
    except UnbalancedBracesError as error:
        raise ConfigError(f"{path}: {error}; write e.g. train-{{000000..000099}}.tar") from None


def _built(url: str, hosts: Hosts) -> list[Shard]:
    path = remote.fetched(url, hosts, keep=True)
    try:
        value: Any = json.loads(path.read_text(encoding="utf-8"))
        return [Shard(urljoin(url, it["name"]), int(it["rows"]), int(it["bytes"])) for it in value["shards"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{url}: is no file of `mmsft data build` ({type(error).__name__}: {error})") from None


def _counted(url: str, hosts: Hosts, open_file: Open) -> Shard:
    """Returns a shard with its rows counted, which is done once."""
    told = remote.remembered(remote.place(url))
    if told is not None and told.rows >= 0:
        return Shard(url, told.rows, told.size)
    log.warning("%s: is fetched to count its rows; shards of `mmsft data build` say how many they have", url)
    path = remote.fetched(url, hosts)
    rows = len(open_file(path))
    told = remote.remembered(path)
    if told is not None:
        remote.remember(path, replace(told, rows=rows))
    return Shard(url, rows)
