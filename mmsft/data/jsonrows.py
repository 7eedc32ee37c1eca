"""Rows of a JSON file of which only the places are known: each is read and parsed when it is asked for."""

import json
from dataclasses import dataclass
from typing import Any, NamedTuple

from mmsft.data.files import RandomFile
from mmsft.data.rows import check_index
from mmsft.errors import DataError
from mmsft.types import Ints, Record


class Spans(NamedTuple):
    """Where the rows lie: [N] first bytes, [N] ends, and, where blank lines were skipped, [N] line indices."""

    starts: Ints
    ends: Ints
    lines: Ints | None = None


@dataclass(frozen=True)
class JsonRows:
    """The rows of a JSONL file or of a JSON array.

    Attributes:
        file: where they are.
        spans: their places in it.
    """

    file: RandomFile
    spans: Spans

    def __len__(self) -> int:
        return len(self.spans.starts)

    def row_id(self, index: int) -> str:
        """Returns ``file.jsonl:12``: the line, or the element of an array, counted from 1."""
        lines = self.spans.lines
        return f"{self.file.path.name}:{(index if lines is None else int(lines[index])) + 1}"

    def __getitem__(self, index: int) -> Record:
        """Reads a row.

        Raises:
            IndexError: there is no such row.
            DataError: the row isn't a JSON object in UTF-8.
        """
        check_index(index, len(self), self.file.path.name)
        start, end = int(self.spans.starts[index]), int(self.spans.ends[index])
        return parse_row(self.file.read(start, end), self.row_id(index), last=index == len(self) - 1)


def parse_row(data: bytes, row: str, last: bool = False) -> Record:
    """Parses one JSON object.

    Args:
        data: its bytes.
        row: the row's id, for errors.
        last: it is the file's last one, so that a writer that was stopped is the likely cause of an error.

    Raises:
        DataError: it isn't a JSON object in UTF-8.
    """
    try:
        value: Any = json.loads(data.decode())
        if b"\\ud" in data.lower():
            # An escape of half a character; found here, since tokenisers and files stumble over it much later.
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{row}: byte {error.start} ({data[error.start : error.start + 1]!r}) isn't UTF-8; "
            "write the file in UTF-8, or mend the row"
        ) from None
    except UnicodeEncodeError as error:
        raise DataError(
            f"{row}: has {error.object[error.start]!r}, half of a surrogate pair; replace it by the whole character"
        ) from None
    except (ValueError, RecursionError) as error:
        cause = "the file's last row is cut off or broken" if last else "not valid JSON"
        shown = data.strip()
        tail = f"...{shown[-40:].decode(errors='replace')!r}" if shown else "nothing"
        raise DataError(f"{row}: {cause}: {error}; it ends with {tail}; mend or remove the row") from None
    if not isinstance(value, dict):
        raise DataError(f"{row}: a row must be a JSON object, this is {type(value).__name__} {str(value)[:40]!r}")
    return value
