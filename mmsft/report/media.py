"""Media as a page takes them in: small pictures, players for what browsers play, a beginning or stills of the rest."""

import base64
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from PIL import Image

from mmsft.data.media_reader import file_of
from mmsft.errors import DataError
from mmsft.modalities.picture import read_picture
from mmsft.modalities.spec import File
from mmsft.types import Media

ALONE: Final = 8 << 20
"""Bytes of a sound or a video that a page takes in whole."""

ALTOGETHER: Final = 48 << 20
"""Bytes of media that a page takes in; of what comes after them it tells the names."""

_HEAVY: Final = 256 << 10
_HEAD: Final = 4096
_SIDE: Final = 360
_CLOUD: Final = 240
_STILLS: Final = 4
_BEGINNING_S: Final = 30
_VIEW: Final = np.array([[0.82, 0.0, -0.57], [-0.2, 0.94, -0.28], [0.54, 0.34, 0.77]])
"""Turns points by 35° about y, then by 20° about x."""
_PCM: Final = (1, 3)  # integers and floats: the forms of WAV that browsers play


class Medium(NamedTuple):
    """A medium of a row.

    Attributes:
        kind: ``image``, ``audio``, ``video`` (a player), ``stills`` (of a video), or empty where nothing can be shown.
        name: its file, with its options.
        uris: its content; of stills each.
        facts: its size or duration, in words.
        note: what is not shown, and why.
        width: of the picture, or of the video's still, in pixels.
        poster: a still of the video, to show until it plays.
    """

    kind: str
    name: str
    uris: tuple[str, ...] = ()
    facts: str = ""
    note: str = ""
    width: int = 0
    poster: str = ""


@dataclass
class Album:
    """The media of a page, which together stay below `ALTOGETHER`.

    Attributes:
        left: bytes that the page can still take in.
        heavy: sounds and videos of more than `_HEAVY` bytes that it has; they play where they stand first.
    """

    left: int = ALTOGETHER
    heavy: dict[Media, Medium] = field(default_factory=dict)

    def medium(self, media: Media) -> Medium:
        """Returns a medium for the page; of what can't be read the reason."""
        name = Path(media.ref).name if isinstance(media.ref, str) else f"{len(media.ref):,} bytes"
        name += "".join(f" {option}={value}" for option, value in media.options)
        if media in self.heavy:
            return self.heavy[media]
        show = _SHOWN.get(media.modality)
        if show is None:
            return Medium("", name, note=f"a page can't show {media.modality}")
        try:
            shown = show(name, file_of(media))
        except (DataError, OSError) as error:
            return Medium("", name, note=str(error))
        size = sum(map(len, (*shown.uris, shown.poster)))
        if size > self.left:
            return Medium("", name, facts=shown.facts, note="not shown: the page is full; show fewer rows")
        self.left -= size
        if size > _HEAVY and shown.kind in ("audio", "video"):
            still, kind = ((shown.poster,), "image") if shown.poster else ((), "")
            note = "plays where it stands first"
            self.heavy[media] = shown._replace(kind=kind, uris=still, poster="", note=note)
        return shown


def _picture(name: str, file: File) -> Medium:
    image = read_picture(file)
    facts = f"{image.width:,} by {image.height:,} pixels"
    small, width = _small(image)
    return Medium("image", name, (small,), facts, width=width)


def _small(image: Image.Image, *, exact: bool = False) -> tuple[str, int]:
    """Returns a picture as a page has it, and its width."""
    image.thumbnail((_SIDE, _SIDE))
    out = BytesIO()
    image.save(out, "WEBP", quality=85, lossless=exact)
    return _uri(out.getvalue(), "image/webp"), image.width


def _sound(name: str, file: File) -> Medium:
    """Returns a player of a sound; of one that browsers don't play, or that is long, of its beginning as WAV."""
    import soundfile

    played, small = _type_of(file, "audio"), _size(file) <= ALONE
    try:
        with soundfile.SoundFile(_opened(file)) as sound:
            seconds, rate = sound.frames / sound.samplerate, sound.samplerate
            facts = f"{_duration(seconds)}, {rate / 1000:g} kHz"
            if played and small:
                return Medium("audio", name, (_uri(_whole(file), played),), facts)
            samples = sound.read(_BEGINNING_S * rate, dtype="int16", always_2d=True)
    except (soundfile.SoundFileError, ValueError) as error:
        if played and small:
            return Medium("audio", name, (_uri(_whole(file), played),))
        return Medium("", name, note=f"the sound can't be read: {error}")
    out = BytesIO()
    soundfile.write(out, samples[:, 0], rate, format="WAV")
    note = f"its first {_BEGINNING_S} s" if seconds > _BEGINNING_S else ""
    return Medium("audio", name, (_uri(out.getvalue(), "audio/wav"),), facts, note)


def _video(name: str, file: File) -> Medium:
    """Returns a player of a video, or stills of one that browsers don't play, or that is large."""
    played, small = _type_of(file, "video"), _size(file) <= ALONE
    try:
        stills, width, facts = _stills(file)
    except DataError as error:
        stills, width, facts = (), 0, ""
        if not (played and small):
            return Medium("", name, note=str(error))
    if played and small:
        poster = stills[0] if stills else ""
        return Medium("video", name, (_uri(_whole(file), played),), facts, width=width, poster=poster)
    why = f"{_size(file) / 2**20:,.0f} MiB are too large for a page" if played else "no browser plays this format"
    return Medium("stills", name, stills, facts, f"{why}; {len(stills)} stills", width)


def _stills(file: File) -> tuple[tuple[str, ...], int, str]:
    """Returns pictures from the first to the last of a video, their width, and its facts.

    Raises:
        DataError: it can't be decoded.
    """
    if find_spec("decord") is None:
        raise DataError("a video's pictures are read by decord, which isn't installed")
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    try:
        video = decord.VideoReader(_opened(file))
        count = len(video)
        frames = [video[at * (count - 1) // (_STILLS - 1)].asnumpy() for at in range(_STILLS)]
        rate = float(video.get_avg_fps())
    except (decord.DECORDError, RuntimeError, IndexError) as error:
        raise DataError(f"the video can't be decoded ({str(error).splitlines()[-1]})") from error
    height, width = frames[0].shape[:2]
    small = [_small(Image.fromarray(frame)) for frame in frames]
    seconds = count / rate if rate else 0.0
    return tuple(uri for uri, _ in small), small[0][1], f"{_duration(seconds)}, {width:,} by {height:,} pixels"


def _points(name: str, file: File) -> Medium:
    """Returns a view of points [n, 3 …] from the front, a little from above and the right; y is up.

    Columns 4 to 6, if there are any, are colours of 0 … 1 or 0 … 255.
    """
    try:
        points = np.load(BytesIO(file) if isinstance(file, bytes) else file, allow_pickle=False)
    except (ValueError, EOFError) as error:
        return Medium("", name, note=f"no array of points ({error})")
    if points.ndim != 2 or points.shape[1] < 3 or not np.issubdtype(points.dtype, np.number):
        return Medium("", name, note=f"no points: an array of {points.shape} {points.dtype}, expected [n, 3 or more]")
    facts = f"{len(points):,} points"
    points = points[np.isfinite(points[:, :3]).all(axis=1)].astype(float)
    if not len(points):
        return Medium("", name, facts=facts, note="none of them is finite")
    turned = (points[:, :3] - points[:, :3].mean(axis=0)) @ _VIEW.T
    places = turned[:, :2] * np.array([1.0, -1.0])
    places -= places.min(axis=0)
    places = (places / max(places.max(), 1e-12) * (_CLOUD - 1)).astype(int)
    colours = np.full((len(points), 3), 90.0)
    if points.shape[1] >= 6:
        colours = points[:, 3:6] * (255 if points[:, 3:6].max() <= 1 else 1)
    canvas = np.full((places[:, 1].max() + 1, places[:, 0].max() + 1, 3), 255, np.uint8)
    near = np.argsort(turned[:, 2])
    canvas[places[near, 1], places[near, 0]] = colours[near].clip(0, 255)
    small, width = _small(Image.fromarray(canvas), exact=True)
    return Medium("image", name, (small,), facts, width=width)


def _opened(file: File) -> str | BytesIO:
    """Returns a file as readers of sounds and videos take it, without reading it."""
    return BytesIO(file) if isinstance(file, bytes) else str(file)


def _size(file: File) -> int:
    return len(file) if isinstance(file, bytes) else file.stat().st_size


def _whole(file: File) -> bytes:
    return file if isinstance(file, bytes) else file.read_bytes()


def _head(file: File) -> bytes:
    if isinstance(file, bytes):
        return file[:_HEAD]
    with file.open("rb") as source:
        return source.read(_HEAD)


def _type_of(file: File, kind: str) -> str:
    """Returns the type of a sound or a video that browsers play, by its first bytes; empty where they don't."""
    data = _head(file)
    if data.startswith(b"RIFF") and data[8:12] == b"WAVE":
        return "audio/wav" if any(form in _PCM for form in _wave_forms(data)) else ""
    if data.startswith(b"ID3") or (len(data) > 1 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0):
        return "audio/mpeg"
    begins = {b"fLaC": "audio/flac", b"OggS": f"{kind}/ogg", b"\x1aE\xdf\xa3": f"{kind}/webm"}
    return next((name for mark, name in begins.items() if data.startswith(mark)), "") or (
        f"{kind}/mp4" if data[4:8] == b"ftyp" else ""
    )


def _wave_forms(data: bytes) -> Iterator[int]:
    """Yields the form of a WAV's samples, once, from its chunk ``fmt ``."""
    at = data.find(b"fmt ", 12)
    if at >= 0:
        form = int.from_bytes(data[at + 8 : at + 10], "little")
        # An extensible WAV states its form in a GUID further on, whose first bytes are that number.
        yield int.from_bytes(data[at + 32 : at + 34], "little") if form == 0xFFFE else form


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{seconds // 60:,.0f} min {seconds % 60:.0f} s"


def _uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


_SHOWN: Final = {"image": _picture, "audio": _sound, "video": _video, "points": _points}
