"""Finds the elements of a JSON array or the pairs of an object of any size, without parsing them and in flat memory."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmsft.data.files import RandomFile
from mmsft.data.jsonrows import Spans
from mmsft.errors import DataError
from mmsft.types import Ints

CHUNK = 1 << 19
_QUOTE, _COMMA, _OPEN, _CLOSE, _BACKSLASH = 1, 2, 3, 4, 5
_SIGNS = {'"': _QUOTE, ",": _COMMA, "{": _OPEN, "[": _OPEN, "}": _CLOSE, "]": _CLOSE, "\\": _BACKSLASH}
_KIND = bytes(_SIGNS.get(chr(byte), 0) for byte in range(256))
_STEP = np.array([0, 0, 0, 1, -1], np.int64)
"""How a kind of sign changes the depth of nesting."""


@dataclass
class _State:
    """What a chunk leaves to the next one."""

    depth: int = 0
    in_string: bool = False
    escaped: bool = False


class _Found(NamedTuple):
    """In one chunk: the commas between elements, and the bracket that closes the array."""

    commas: Ints
    close: int | None


def find_elements(file: RandomFile, start: int, chunk: int = CHUNK) -> Spans:
    """Returns where the elements of the array, or the pairs of the object, begin and end, with white space around them.

    Args:
        file: the file.
        start: position of the opening bracket.
        chunk: bytes that are looked at together.

    Raises:
        DataError: it isn't closed, or something follows it.
    """
    state = _State()
    commas: list[Ints] = []
    for at in range(start, file.size, chunk):
        found = _scan(file.read(at, min(at + chunk, file.size)), state)
        commas.append(found.commas + at)
        if found.close is not None:
            close = at + found.close
            _check_rest(file, close + 1, chunk)
            return _spans(file, start, np.concatenate(commas), close)
    number = sum(map(len, commas)) + 1
    what = "array" if file.read(start, start + 1) == b"[" else "object"
    raise DataError(
        f"{file.path}: the {what} isn't closed: the file ends at byte {file.size}, inside element {number}"
        f"{' and inside a string' if state.in_string else ''}; it was cut off or a bracket is missing: "
        "fetch or write it again"
    )


def _scan(data: bytes, state: _State) -> _Found:
    """Finds the separators in one chunk and brings the state to its end."""
    kind_at = np.frombuffer(data.translate(_KIND), np.uint8)
    places = np.flatnonzero(kind_at != 0)
    kinds = kind_at[places]
    quotes = (kinds == _QUOTE) & ~_escaped(places, kinds, len(data), state)
    inside = (np.cumsum(quotes) + state.in_string) % 2 == 1
    state.in_string = bool(inside[-1]) if len(inside) else state.in_string
    outside = ~inside & (kinds != _QUOTE) & (kinds != _BACKSLASH)
    places, kinds = places[outside], kinds[outside]
    depth = np.cumsum(_STEP[kinds]) + state.depth
    state.depth = int(depth[-1]) if len(depth) else state.depth
    closes = np.flatnonzero((kinds == _CLOSE) & (depth == 0))
    last = int(closes[0]) if len(closes) else len(places)
    commas = places[:last][(kinds[:last] == _COMMA) & (depth[:last] == 1)]
    return _Found(commas, int(places[last]) if len(closes) else None)


def _escaped(places: Ints, kinds: NDArray[np.uint8], size: int, state: _State) -> NDArray[np.bool_]:
    """Tells which signs follow an odd number of backslashes, also ones that began in the chunk before."""
    escaped = np.zeros(len(places), bool)
    starts_escaped, state.escaped = state.escaped, False
    if starts_escaped and len(places) and places[0] == 0:
        escaped[0] = True
    slashes = np.flatnonzero(kinds == _BACKSLASH)
    if not len(slashes):
        return escaped
    at = places[slashes]
    begins = np.ones(len(at), bool)
    begins[1:] = np.diff(at) != 1
    run_start = at[begins][np.cumsum(begins) - 1]
    odd = (at - run_start) % 2 == 0
    if starts_escaped:
        odd ^= run_start == 0  # the first backslash of this run is itself escaped
    state.escaped = bool(odd[-1]) and int(at[-1]) == size - 1
    escaping = slashes[odd]
    escaping = escaping[escaping + 1 < len(places)]
    escaped[escaping + 1] = places[escaping + 1] == places[escaping] + 1
    return escaped


def _check_rest(file: RandomFile, start: int, chunk: int) -> None:
    for at in range(start, file.size, chunk):
        data = file.read(at, min(at + chunk, file.size))
        rest = data.lstrip()
        if rest:
            place = at + len(data) - len(rest)
            raise DataError(
                f"{file.path}: the array ends at byte {start}, but {rest[:20]!r} follows at byte {place}; "
                "write one array of objects, or JSONL with one object a line"
            )


def _spans(file: RandomFile, start: int, commas: Ints, close: int) -> Spans:
    starts = np.concatenate([[start], commas]) + 1
    ends = np.concatenate([commas, [close]])
    if len(starts) == 1 and not file.read(int(starts[0]), int(ends[0])).strip():
        return Spans(starts[:0], ends[:0])
    return Spans(starts, ends)
