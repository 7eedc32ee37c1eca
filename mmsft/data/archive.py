"""Media that lie in one file: a tar, or JSON of base64 by name, as MIMIC-IT's pictures come."""

import json
import posixpath
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmsft.data.files import RandomFile
from mmsft.data.jsonarray import find_elements
from mmsft.data.members import Form, Member, opened
from mmsft.data.tar import FLAWS, SOUND, TWICE, flaw, headers, is_tar
from mmsft.errors import ConfigError, DataError
from mmsft.types import Ints

_HEAD: Final = 1 << 16
_NAME: Final = 256
"""Bytes in which a name of JSON is looked for first."""
_PAIR: Final = re.compile(rb'\s*("(?:[^"\\]|\\.)*")\s*:', re.DOTALL)


class _Found(NamedTuple):
    """A file, and which of `FLAWS` it has."""

    name: str
    offset: int
    size: int
    flaw: int = SOUND


@dataclass(frozen=True)
class Archive:
    """The files of a tar or of JSON by name: 33 bytes of memory for each, whatever its name and size.

    Attributes:
        file: the tar or the JSON.
        form: which of the two it is.
        example: the first file's name.
        keys: [n, 2] sums of the names, sorted.
        places: [n, 2] first byte and number of bytes.
        flaws: [n] as of `FLAWS`.
    """

    file: RandomFile
    form: Form
    example: str
    keys: NDArray[np.uint64]
    places: Ints
    flaws: NDArray[np.int8]

    @property
    def path(self) -> Path:
        """Where it is."""
        return self.file.path

    def find(self, ref: str, row: str) -> Member:
        """Returns the file that a row names.

        Args:
            ref: its name, as the archive has it.
            row: the row's id, for errors.

        Raises:
            DataError: there is none, it leads out of the archive, it is a link, cut off, or there twice, or the archive
                was changed since it was opened.
        """
        self.file.check_same(opened(str(self.path)))
        name = _plain(ref) if self.form == "tar" else ref
        if name.startswith(("/", "../")) or name == "..":
            raise DataError(f"{row}: {ref!r} leads out of {self.path}; name a file in it")
        high, low = map(np.uint64, _key(name))
        first = int(np.searchsorted(self.keys[:, 0], high, "left"))
        last = int(np.searchsorted(self.keys[:, 0], high, "right"))
        found = next((at for at in range(first, last) if self.keys[at, 1] == low), None)
        if found is None:
            raise DataError(
                f"{row}: no {ref!r} in {self.path}, whose names are like {self.example!r}; mend the row, or media_root"
            )
        if self.flaws[found]:
            raise DataError(f"{row}: {ref!r} in {self.path} {FLAWS[self.flaws[found]]}")
        offset, size = self.places[found].tolist()
        return Member(str(self.path), offset, size, name.rpartition("/")[2], self.form)


def open_archive(path: Path) -> Archive:
    """Opens a tar, or JSON of base64 by name: finds its files, in flat memory and without reading them.

    Raises:
        ConfigError: it is neither, or compressed, or holds none.
        DataError: it is cut off.
    """
    status = path.stat()
    return _opened(path, status.st_size, status.st_mtime_ns)


# Sources often share one, and a run opens its sources several times.
@lru_cache(maxsize=8)
def _opened(path: Path, size: int, changed: int) -> Archive:
    file = RandomFile(path)
    head = file.read(0, min(_HEAD, file.size))
    begin = len(head) - len(head.lstrip(b"\xef\xbb\xbf \t\r\n"))
    if is_tar(head):
        return _indexed(file, "tar", _in_tar(file))
    if head[begin : begin + 1] == b"{":
        return _indexed(file, "json", _in_json(file, begin))
    raise ConfigError(
        f"media_root {str(path)!r} begins with {head[:20]!r}; it is a folder, a tar that isn't compressed, or JSON of "
        "base64 by name"
    )


def _indexed(file: RandomFile, form: Form, files: Iterator[_Found]) -> Archive:
    example = ""
    keys, places, flaws = array("Q"), array("q"), array("b")
    for name, offset, size, wrong in files:
        example = example or name
        keys.extend(_key(name))
        places.extend((offset, size))
        flaws.append(wrong)
    if not flaws:
        raise ConfigError(f"media_root {str(file.path)!r} holds no files; name another one")
    sums = np.array(keys, np.uint64).reshape(-1, 2)
    order = np.lexsort((sums[:, 1], sums[:, 0]))
    sums, found = sums[order], np.array(flaws, np.int8)[order]
    again = np.flatnonzero((sums[1:] == sums[:-1]).all(1))
    found[again] = found[again + 1] = TWICE
    return Archive(file, form, example, sums, np.array(places, np.int64).reshape(-1, 2)[order], found)


def _in_tar(file: RandomFile) -> Iterator[_Found]:
    for info in headers(file):
        yield _Found(_plain(info.name), info.offset_data, info.size, flaw(info, file.size))


def _in_json(file: RandomFile, begin: int) -> Iterator[_Found]:
    spans = find_elements(file, begin)
    for number, (start, end) in enumerate(zip(spans.starts.tolist(), spans.ends.tolist(), strict=True), 1):
        head = _PAIR.match(file.read(start, min(end, start + _NAME))) or _PAIR.match(file.read(start, end))
        try:
            name = json.loads(head[1]) if head else None
        except ValueError:
            name = None
        if head is None or name is None:
            raise DataError(f"{file.path}: pair {number} isn't a name with a text of base64; fetch or write it again")
        yield _Found(name, start + head.end(), end - start - head.end())


def _plain(name: str) -> str:
    return posixpath.normpath(name)


def _key(name: str) -> tuple[int, int]:
    digest = blake2b(name.encode(errors="surrogatepass"), digest_size=16).digest()
    return int.from_bytes(digest[:8]), int.from_bytes(digest[8:])
