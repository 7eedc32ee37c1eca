"""Rows that were lost once, by what they hold and what read them: later runs don't read them again."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from mmsft.data.chat import ChatEncoder
from mmsft.data.ledger import FATES, Entry
from mmsft.data.media_reader import MediaReader, file_of
from mmsft.data.mixture import Mixture
from mmsft.data.shared import plain
from mmsft.data.source import Source
from mmsft.data.token_store import identity
from mmsft.data.wordings import Wordings
from mmsft.errors import ConfigError, DataError, suggest
from mmsft.types import Media

FILE: Final = "quarantine.jsonl"
"""In a run folder."""
_FIELDS: Final[Mapping[str, type]] = {
    "source": str, "index": int, "row": str, "fate": str, "reason": str, "mark": str,
}  # fmt: skip


def line(entry: Entry) -> dict[str, Any]:
    """Returns what a quarantine holds of a lost row."""
    return {name: getattr(entry, name) for name in _FIELDS}


def reads(encoder: ChatEncoder, reader: MediaReader) -> str:
    """Returns a hash of what decides whether rows become tokens: what one length or template loses, another may not."""
    towers = {name: (modality.settings(), repr(adapter)) for name, (modality, adapter) in reader.towers.items()}
    return _hash((identity(replace(encoder, loss_by=None)), towers))


def mark(source: Source, row: int, read: str) -> str:
    """Returns a hash of what a row holds, its media's bytes too, and of what reads it.

    What can't be read stands for itself by what is said of it: a file that wasn't there is one that has changed.

    Args:
        source: of the row.
        row: its number there.
        read: of the recipe, by `reads`.
    """
    held: list[object] = []
    try:
        held.append(source.record(row))
        turns = source.conversation(row).turns
        held += [_content(medium) for turn in turns for medium in turn.media]
    except DataError as error:
        held.append(str(error))
    wordings = repr(source.read) if isinstance(source.read, Wordings) else ""
    return _hash((read, source.format, source.config.options, wordings, held))


def known(path: Path, mixture: Mixture, read: str) -> dict[tuple[int, int], Entry]:
    """Returns the rows (source, row) of a quarantine that are still what they were, and are read as they were.

    Args:
        path: of the file.
        mixture: whose rows they may be.
        read: of the recipe, by `reads`.

    Raises:
        ConfigError: there is no such file.
        DataError: a line of it isn't one of a quarantine.
    """
    numbers = {source.name: number for number, source in enumerate(mixture.sources)}
    found = {}
    for entry in _entries(path):
        number = numbers.get(entry.source)
        if number is None:
            continue
        source = mixture.sources[number]
        there = 0 <= entry.index < len(source.rows) and source.rows.row_id(entry.index) == entry.row
        if there and mark(source, entry.index, read) == entry.mark:
            found[number, entry.index] = entry
    return found


def _entries(path: Path) -> list[Entry]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        near = [other.name for other in path.parent.glob("*.jsonl")] if path.parent.is_dir() else []
        raise ConfigError(
            f"quarantine: {path}: no such file{suggest(path.name, near)}; a run writes {FILE} into its folder, and "
            "`mmsft data check --quarantine FILE` writes one before there is a run"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"quarantine: {path}: can't be read: {error}") from None
    return [_entry(text, f"quarantine: {path}:{number}") for number, text in enumerate(lines, 1) if text.strip()]


def _entry(text: str, where: str) -> Entry:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not valid JSON: {error}; remove the line, or write the file again") from None
    fields = value if isinstance(value, dict) else {}
    odd = [name for name, kind in _FIELDS.items() if type(fields.get(name)) is not kind]
    if odd or fields["fate"] not in FATES:
        raise DataError(
            f"{where}: isn't a line of a quarantine ({', '.join(odd) or 'fate'}); name a file that `mmsft train` or "
            "`mmsft data check --quarantine` wrote"
        )
    return Entry(**{name: fields[name] for name in _FIELDS}, known=True)


def _content(medium: Media) -> object:
    """Returns what stands for a medium's bytes."""
    try:
        file = file_of(medium)
        if isinstance(file, bytes):
            return medium.modality, medium.options, _sum(file)
        with file.open("rb") as opened:
            found = hashlib.file_digest(opened, lambda: hashlib.blake2b(digest_size=16))
        return medium.modality, medium.options, found.hexdigest()
    except (OSError, DataError) as error:
        return str(error)


def _sum(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _hash(value: object) -> str:
    return _sum(repr(plain(value)).encode(errors="backslashreplace"))
