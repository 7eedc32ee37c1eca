"""Media of a page: browsers can play what has a player, the rest is seen in part, and all of it stays small."""

import base64
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from mmsft.report import media as of_pages
from mmsft.report.media import ALONE, Album, Medium
from mmsft.types import Media
from tests.makers import fetched, picture

TONE = (np.sin(np.arange(8000) / 5) * 9000).astype("int16")


def sound(form: str, subtype: str | None = None, seconds: int = 1) -> bytes:
    out = BytesIO()
    soundfile.write(out, np.tile(TONE, seconds), 8000, format=form, subtype=subtype)
    return out.getvalue()


def shown(modality: str, ref: str | bytes) -> Medium:
    return Album().medium(Media(modality, ref))


def content(uri: str) -> tuple[str, bytes]:
    head, _, data = uri.partition(",")
    return head, base64.b64decode(data)


def test_a_large_picture_is_shown_small_and_a_broken_one_says_why(tmp_path: Path) -> None:
    large = shown("image", str(picture(tmp_path / "a.png", "red", side=2000)))
    assert (large.kind, large.facts, large.width) == ("image", "2,000 by 2,000 pixels", 360)
    head, data = content(large.uris[0])
    assert (head, len(data) < 10_000) == ("data:image/webp;base64", True)
    assert Image.open(BytesIO(data)).size == (360, 360)
    (tmp_path / "b.png").write_bytes(b"no picture")
    broken = shown("image", str(tmp_path / "b.png"))
    assert (broken.kind, broken.uris) == ("", ())
    assert "not a picture" in broken.note
    assert "no such file" in shown("image", str(tmp_path / "c.png")).note
    assert shown("tactile", "a.npy").note == "a page can't show tactile"


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (sound("WAV"), "audio/wav"),
        (sound("WAV", "FLOAT"), "audio/wav"),
        (sound("WAVEX"), "audio/wav"),
        (sound("FLAC"), "audio/flac"),
        (sound("OGG"), "audio/ogg"),
        (sound("MP3"), "audio/mpeg"),
    ],
)
def test_a_sound_that_browsers_play_is_taken_in_as_it_is(data: bytes, kind: str) -> None:
    player = shown("audio", data)
    assert content(player.uris[0]) == (f"data:{kind};base64", data)
    assert player.kind == "audio"
    assert player.facts.endswith("s, 8 kHz")
    assert player.name == f"{len(data):,} bytes"


@pytest.mark.parametrize(
    "data", [sound("WAV", "GSM610"), sound("WAV", "IMA_ADPCM"), sound("AIFF"), sound("AU"), sound("CAF")]
)
def test_a_sound_that_browsers_do_not_play_becomes_wav_of_the_same_samples(data: bytes) -> None:
    player = shown("audio", data)
    head, played = content(player.uris[0])
    assert head == "data:audio/wav;base64"
    expected, rate = soundfile.read(BytesIO(data), dtype="int16")
    samples, played_rate = soundfile.read(BytesIO(played), dtype="int16")
    assert rate == played_rate == 8000
    assert np.array_equal(samples, expected)
    assert soundfile.info(BytesIO(played)).subtype == "PCM_16"


def test_of_a_long_sound_there_is_the_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(of_pages, "ALONE", 10_000)
    player = shown("audio", sound("WAV", seconds=70))
    samples, _ = soundfile.read(BytesIO(content(player.uris[0])[1]), dtype="int16")
    assert (len(samples), player.facts, player.note) == (30 * 8000, "1 min 10 s, 8 kHz", "its first 30 s")


def test_a_file_larger_than_a_page_is_not_read_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(of_pages, "ALONE", 10_000)
    monkeypatch.setattr(Path, "read_bytes", lambda self: pytest.fail("read as a whole"))
    (tmp_path / "a.wav").write_bytes(sound("WAV", seconds=40))
    (tmp_path / "a.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + b"\0" * 20_000)
    assert shown("audio", str(tmp_path / "a.wav")).note == "its first 30 s"
    assert "can't be decoded" in shown("video", str(tmp_path / "a.mp4")).note


def test_what_is_no_sound_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    assert "the sound can't be read" in shown("audio", str(tmp_path / "a.wav")).note
    assert shown("audio", b"").kind == ""


def test_a_video_that_is_large_or_of_another_format_says_why_it_does_not_play() -> None:
    mp4 = b"\0\0\0\x18ftypmp42" + b"\0" * 100
    assert shown("video", mp4).uris[0].startswith("data:video/mp4;base64,")  # a browser may know what decord doesn't
    assert shown("video", b"\x1aE\xdf\xa3" + b"\0" * 9).uris[0].startswith("data:video/webm")
    assert "can't be decoded" in shown("video", mp4 + b"\0" * ALONE).note
    assert "can't be decoded" in shown("video", b"nothing").note


def test_a_page_takes_in_so_much_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    album = Album(left=60_000)
    data = sound("WAV")  # 16 kB, a third more in base64
    kinds = [album.medium(Media("audio", data)).kind for _ in range(4)]
    assert kinds == ["audio", "audio", "", ""]
    last = album.medium(Media("audio", data))
    assert "the page is full" in last.note
    assert last.facts == "1.0 s, 8 kHz"


def test_what_is_heavy_plays_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(of_pages, "_HEAVY", 30_000)
    album = Album()
    heavy, light = (Media("audio", sound("WAV", seconds=seconds)) for seconds in (2, 1))
    assert [album.medium(medium).kind for medium in (heavy, light, heavy, light)] == ["audio", "audio", "", "audio"]
    again = album.medium(heavy)
    assert (again.note, again.facts) == ("plays where it stands first", "2.0 s, 8 kHz")


def test_points_are_drawn_in_their_colours(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    places = chance.random((5000, 3))
    red = np.concatenate([places, np.tile([1.0, 0, 0], (5000, 1))], axis=1)
    np.save(tmp_path / "a.npy", red)
    drawn = shown("points", str(tmp_path / "a.npy"))
    assert (drawn.kind, drawn.facts) == ("image", "5,000 points")
    pixels = np.asarray(Image.open(BytesIO(content(drawn.uris[0])[1])).convert("RGB")).reshape(-1, 3).astype(int)
    assert {tuple(pixel) for pixel in pixels.tolist()} == {(255, 0, 0), (255, 255, 255)}
    for array in (np.zeros(3), np.zeros((4, 2)), np.array([["a", "b", "c"]]), np.full((2, 3), np.nan)):
        np.save(tmp_path / "b.npy", array)
        assert shown("points", str(tmp_path / "b.npy")).kind == ""
    np.save(tmp_path / "c.npy", np.zeros((3, 3)))
    assert shown("points", str(tmp_path / "c.npy")).kind == "image"
    (tmp_path / "d.npy").write_bytes(b"nothing")
    assert "no array of points" in shown("points", str(tmp_path / "d.npy")).note


@pytest.mark.assets
def test_real_videos_have_a_player_with_a_still_and_one_of_avi_is_seen_in_stills() -> None:
    folder = fetched("llamafactory-data") / "mllm_demo_data"
    played = shown("video", str(folder / "1.mp4"))
    assert (played.kind, played.poster.partition(",")[0]) == ("video", "data:image/webp;base64")
    assert played.facts.endswith("pixels")
    stills = shown("video", str(folder / "2.avi"))
    assert (stills.kind, len(set(stills.uris))) == ("stills", 4)
    assert "no browser plays this format; 4 stills" in stills.note
