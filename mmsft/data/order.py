"""In which order rows are seen: a pure function of seed, epoch and global index."""

import hashlib
from functools import lru_cache

import numpy as np

from mmsft.types import Ints


@lru_cache(maxsize=2)
def permutation(seed: int, epoch: int, rows: int) -> Ints:
    """Returns the order of one epoch, [rows]."""
    key = int.from_bytes(hashlib.sha256(f"order {seed} {epoch}".encode()).digest()[:16], "little")
    return np.random.Generator(np.random.Philox(key=key)).permutation(rows).astype(np.int64)


def rows_at(seed: int, rows: int, start: int, stop: int) -> Ints:
    """Returns which rows stand at the global indices start … stop − 1; epochs follow one another without a gap."""
    parts = []
    while start < stop:
        epoch, first = divmod(start, rows)
        last = min(rows, first + stop - start)
        parts.append(permutation(seed, epoch, rows)[first:last])
        start += last - first
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def chain(digest: str, rows: Ints) -> str:
    """Returns the hash of all rows seen so far: two runs with one hash saw the same rows in the same order."""
    return hashlib.sha256(digest.encode() + rows.tobytes()).hexdigest()[:16]
