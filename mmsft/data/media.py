"""Finds the file that a row names, inside the source's media root and nowhere else, or the one that a user names."""

import re
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias
from urllib.parse import unquote, urlsplit

from mmsft.data.archive import Archive
from mmsft.data.download import Hosts, is_url
from mmsft.data.members import Member, from_base64, inside, member
from mmsft.data.remote import Link
from mmsft.errors import DataError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")


MediaRoot: TypeAlias = Path | Archive
"""Where a source's media lie: in a folder, or all in one file."""


def resolve(ref: str | bytes, root: MediaRoot, row: str, hosts: Hosts | None = None) -> Path | Member | Link | bytes:
    """Returns where a medium lies, or its bytes.

    Args:
        ref: a path, absolute or relative to `root`; a ``file://`` URL; a base64 ``data:`` URI; a place in a tar, as
            `Member` writes it; or the file's bytes. Of an archive, the name of a file in it.
        root: the media root. Links are followed, and what they lead to must lie inside it too.
        row: the row's id, for errors.
        hosts: on the network that may be asked for media; None = the network may not be asked.

    Raises:
        DataError: no such file, one outside of the root, one on the network where that may not be, or broken base64.
    """
    inline = _inline(ref, row)
    if inline is not None:
        return inline
    if hosts is not None and is_url(str(ref)):
        return Link(hosts, str(ref))
    if isinstance(root, Archive):
        return root.find(str(ref), row)
    packed = member(str(ref))
    return _find(_local(str(ref), row), root, row) if packed is None else inside(packed, root, row)


def locate(ref: str | bytes, where: str) -> Path | bytes:
    """Returns where a medium lies that a user names, relative to the working directory, or its bytes.

    Args:
        ref: as with `resolve`, anywhere on this machine.
        where: what names it, for errors.

    Raises:
        DataError: no such file, one that must be downloaded first, or broken base64.
    """
    inline = _inline(ref, where)
    if inline is not None:
        return inline
    try:
        path = Path(_local(str(ref), where)).expanduser().absolute()
        found, folder, path = path.is_file(), path.is_dir(), path.resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{where}: can't be looked up: {_cause(error)}; mend the name") from None
    if folder:
        raise DataError(f"{where}: {path} is a folder; name a file")
    if not found:
        raise DataError(f"{where}: no such file (looked in {path.parent})")
    return path


def _inline(ref: str | bytes, row: str) -> bytes | None:
    if isinstance(ref, bytes):
        if not ref:
            raise DataError(f"{row}: a medium of 0 bytes; mend or remove the row")
        return ref
    return _decode(ref, row) if ref.startswith("data:") else None


def _decode(uri: str, row: str) -> bytes:
    header, comma, payload = uri.partition(",")
    if not comma or not header.endswith(";base64"):
        raise DataError(f"{row}: {_short(uri)} isn't base64; write data:image/png;base64,...")
    return from_base64(payload, f"{row}: {_short(uri)}")


def _local(ref: str, row: str) -> str:
    scheme = _SCHEME.match(ref)
    if not scheme:
        return ref
    if scheme[1].lower() != "file":
        raise DataError(
            f"{row}: {_short(ref)} is on the network, which rows may not lead to: give the source `urls: public` where "
            "it is http or https; or download it first, and name the file relative to media_root"
        )
    return unquote(urlsplit(ref).path)


# Links take long to follow, and a source has one root.
@lru_cache(maxsize=64)
def _real(root: Path) -> Path:
    return root.resolve()


def _find(ref: str, root: Path, row: str) -> Path:
    root = _real(root)
    try:
        path = (root / ref).resolve()
        inside, found = path.is_relative_to(root), path.is_file()
        folder = not found and path.is_dir()
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{row}: {_short(ref)} can't be looked up in {root}: {_cause(error)}; mend the name") from None
    if not inside:
        raise DataError(
            f"{row}: {_short(ref)} leads to {path}, outside of the media root {root}; move the file inside, or set "
            "the source's media_root to a folder that holds all of its media"
        )
    if folder:
        raise DataError(f"{row}: {_short(ref)} is a folder in the media root {root}; name a file")
    if not found:
        missing = next(part for part in [*reversed(path.parents), path] if not part.exists())
        what = "no such file" if missing == path else f"no folder {missing.relative_to(root)}"
        raise DataError(f"{row}: {_short(ref)}: {what} in the media root {root}; fetch it, or mend media_root")
    return path


def _cause(error: Exception) -> str:
    # A name of thousands of letters or in a folder that may not be entered, one with a NUL, a loop of links.
    return str(error.strerror if isinstance(error, OSError) else error)


def _short(ref: str) -> str:
    return repr(ref if len(ref) <= 200 else f"{ref[:60]}...")
