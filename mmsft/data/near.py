"""Finds rows that say nearly the same as an earlier one, by MinHash."""

import re
from typing import Any, Final

from mmsft.errors import ConfigError

_WORDS: Final = 3
"""Neighbouring words that are compared as one."""
_HASHES: Final = 128
_WORD: Final = re.compile(r"\w+")


class Near:
    """Remembers texts and tells which of them a new one is near to.

    Args:
        likeness: from which part of common word sequences on two texts count as near (Jaccard's index, estimated by
            128 hashes).

    Raises:
        ConfigError: datasketch isn't installed.
    """

    def __init__(self, likeness: float) -> None:
        try:
            from datasketch import MinHash, MinHashLSH
        except ImportError:
            raise ConfigError("validation.near needs datasketch: pip install 'mmsft[near]', or leave it out") from None
        self._hashed: Any = MinHash
        self._known: Any = MinHashLSH(threshold=likeness, num_perm=_HASHES)
        self._count = 0

    def keys(self, text: str) -> list[bytes]:
        """Returns keys of the text: its own, and those of the earlier texts that it is near to."""
        words = _WORD.findall(text.lower())
        pieces = {" ".join(words[at : at + _WORDS]) for at in range(max(1, len(words) - _WORDS + 1))}
        hashed = self._hashed(num_perm=_HASHES, seed=1)
        hashed.update_batch([piece.encode(errors="surrogatepass") for piece in pieces])
        found = [*self._known.query(hashed), self._count]
        self._known.insert(self._count, hashed)
        self._count += 1
        return [b"near %d" % number for number in found]
