"""Finds the lines of a JSONL file, without parsing them."""

import numpy as np
from numpy.typing import NDArray

from mmsft.data.files import RandomFile
from mmsft.data.jsonrows import Spans
from mmsft.types import Ints

CHUNK = 1 << 22
_NEWLINE = ord("\n")
_WHITE = np.zeros(256, bool)
_WHITE[list(b" \t\r\n")] = True


def find_lines(file: RandomFile, start: int, chunk: int = CHUNK) -> Spans:
    """Returns where the lines that hold something begin and end.

    Args:
        file: the file.
        start: first byte after a byte order mark.
        chunk: bytes that are looked at together.
    """
    breaks: list[Ints] = [np.array([start - 1], np.int64)]
    first_bytes: list[NDArray[np.bool_]] = []
    fresh = True
    for at in range(start, file.size, chunk):
        data = np.frombuffer(file.read(at, min(at + chunk, file.size)), np.uint8)
        found = np.flatnonzero(data == _NEWLINE)
        # Whether each line that begins in this chunk begins with white space; only those can be blank.
        begins = found[found + 1 < len(data)] + 1
        first_bytes.append(_WHITE[data[np.concatenate([[0], begins]) if fresh else begins]])
        fresh = bool(len(found)) and int(found[-1]) == len(data) - 1
        breaks.append(found + at)
    ends = np.concatenate([*breaks[1:], [file.size]]) if not fresh else np.concatenate(breaks[1:])
    starts = np.concatenate(breaks)[: len(ends)] + 1
    suspects = np.flatnonzero(np.concatenate(first_bytes)) if first_bytes else np.zeros(0, np.int64)
    blank = [line for line in suspects if not file.read(int(starts[line]), int(ends[line])).strip()]
    if not blank:
        return Spans(starts, ends)
    kept = np.delete(np.arange(len(starts)), blank)
    return Spans(starts[kept], ends[kept], kept)
