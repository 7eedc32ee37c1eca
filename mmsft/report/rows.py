"""Rows as a page shows them: their turns with what is learned, their media, and the tree that they are."""

import base64
import mimetypes
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Final, NamedTuple

from mmsft.data.media_reader import file_of
from mmsft.errors import DataError
from mmsft.modalities.picture import read_picture
from mmsft.modalities.spec import File
from mmsft.report.page import page
from mmsft.types import Encoded, Media

_SIDE: Final = 192
_LARGEST: Final = 8 << 20
"""Bytes of a sound or a video that a page takes in; of a larger one it tells the name."""
_WIDE: Final = 900.0
_HIGH: Final = 16


class Piece(NamedTuple):
    """A run of tokens of one kind.

    Attributes:
        kind: ``text``, ``control`` or ``media``.
        text: what they say; of a medium its name.
        weight: in the loss; None = context.
        ids: the tokens' ids.
    """

    kind: str
    text: str
    weight: float | None
    ids: str

    @property
    def shade(self) -> str:
        """How dark a learned piece is: by its weight, at most fully."""
        return "0" if self.weight is None else f"{0.15 + 0.45 * min(1.0, self.weight):.2f}"


class Medium(NamedTuple):
    """A medium of a row.

    Attributes:
        kind: ``image``, ``audio``, ``video``, or empty where the page can't show it.
        name: its file, with its options.
        uri: its content; empty where the page can't show it.
        note: why not.
    """

    kind: str
    name: str
    uri: str
    note: str = ""


class Bar(NamedTuple):
    """A segment of a tree: where it is drawn, in pixels, and what it holds."""

    x: float
    y: float
    width: float
    learned: float
    label: str
    joint: tuple[float, float] | None


@dataclass(frozen=True)
class Drawn:
    """A row to show.

    Attributes:
        id: of the row.
        group: number of the rows that it is joined with; None = it is alone.
        branches: its threads.
        media: each once.
        bars: its tree.
        counts: of tokens, in words.
        error: why it can't be used.
    """

    id: str
    group: int | None = None
    branches: tuple[tuple[Piece, ...], ...] = ()
    media: tuple[Medium, ...] = ()
    bars: tuple[Bar, ...] = ()
    counts: str = ""
    error: str | None = None

    @property
    def height(self) -> float:
        """Of the tree, in pixels."""
        return max((bar.y for bar in self.bars), default=0.0) + _HIGH


def rows_page(title: str, rows: Sequence[Drawn]) -> str:
    """Returns a page of rows.

    Args:
        title: above them.
        rows: in their order.
    """
    return page("rows", title=title, rows=rows, width=_WIDE + 8, high=_HIGH)


def medium(media: Media) -> Medium:
    """Returns a medium for a page: a small picture, or a player; of what can't be read the reason."""
    name = Path(media.ref).name if isinstance(media.ref, str) else f"{len(media.ref):,} bytes"
    name += "".join(f" {option}={value}" for option, value in media.options)
    try:
        if media.modality == "image":
            return Medium("image", name, _thumbnail(file_of(media)))
        if media.modality in ("audio", "video"):
            file = file_of(media)
            data = file if isinstance(file, bytes) else file.read_bytes()
            if len(data) > _LARGEST:
                return Medium("", name, "", f"{len(data) / 2**20:.0f} MiB, too large for a page")
            return Medium(media.modality, name, _uri(data, _type(media)))
    except (DataError, OSError) as error:
        return Medium("", name, "", str(error))
    return Medium("", name, "", f"a page can't show {media.modality}")


def _thumbnail(file: File) -> str:
    image = read_picture(file)
    image.thumbnail((_SIDE, _SIDE))
    out = BytesIO()
    image.save(out, "PNG")
    return _uri(out.getvalue(), "image/png")


def _type(media: Media) -> str:
    guessed = mimetypes.guess_type(media.ref)[0] if isinstance(media.ref, str) else None
    return guessed or ("audio/wav" if media.modality == "audio" else "video/mp4")


def _uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def bars(encoded: Encoded) -> tuple[Bar, ...]:
    """Returns a tree's segments, the longest thread as wide as the page, each below the one before."""
    longest = int(encoded.positions.max()) + 1
    scale = _WIDE / longest
    learned = set((encoded.targets.position + 1).tolist())
    places: list[Bar] = []
    for number, segment in enumerate(encoded.segments):
        x, y = float(encoded.positions[segment.start]) * scale, number * (_HIGH + 6.0)
        count = segment.end - segment.start
        part = sum(index in learned for index in range(segment.start, segment.end)) / count
        above = places[segment.parent] if segment.parent >= 0 else None
        joint = None if above is None else (above.x + above.width, above.y + _HIGH / 2)
        places.append(Bar(x, y, count * scale, part, f"{count} tokens, {part:.0%} learned", joint))
    return tuple(places)
