"""What packages hold becomes rows that say what is in their media, the same on each machine."""

import gzip
import json
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from mmsft.assets import emoji
from mmsft.assets.emoji import PLACES, Emoji
from mmsft.assets.furniture import POINTS, prepare_furniture
from mmsft.assets.rows import asked, write_lines
from mmsft.assets.sights import prepare_clips, prepare_photos
from mmsft.assets.speech import LANGUAGES, prepare_librivox, prepare_prompts
from mmsft.assets.stamps import prepare_stamps
from mmsft.errors import ConfigError
from tests.makers import lines


def answers(file: Path) -> dict[str, str]:
    """Returns what is answered in each row, by its id."""
    return {row["id"]: row["conversations"][1]["value"] for row in lines(file)}


def media(folder: Path, file: str) -> list[Path]:
    """Returns the files that rows name."""
    rows = [{**row, **row.get("media", {})} for row in lines(folder / file)]
    return [folder / row[kind] for row in rows for kind in ("image", "audio", "video", "points") if kind in row]


def test_rows_keep_their_alphabet_and_no_rows_are_an_error(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", [asked("1", {"image": "a.png", "audio": "a.ogg"}, "¿Qué?", "Ёж", kind="x")])
    [row] = lines(tmp_path / "a.jsonl")
    assert row["conversations"][0]["value"] == "<image><audio>\n¿Qué?"
    assert (row["kind"], row["image"], row["audio"]) == ("x", "a.png", "a.ogg")
    assert "Ёж" in (tmp_path / "a.jsonl").read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match=r"b\.jsonl: nothing in the package"):
        write_lines(tmp_path / "b.jsonl", [])


def test_prompts_become_flac_of_the_same_samples_and_those_of_unknown_words_are_left_out(tmp_path: Path) -> None:
    sound = (np.sin(np.arange(4000) / 9) * 9000).astype("int16")
    for code in LANGUAGES:
        sounds = tmp_path / f"{code}-gsm" / f"{code}_voice" / "digits"
        sounds.mkdir(parents=True)
        for name in ("../hello", "1", "../beep"):
            soundfile.write(sounds / f"{name}.gsm", sound, 8000, format="RAW", subtype="GSM610")
        (tmp_path / code).mkdir()
        listed = "; list\nhello: Hello to you,  all.\ndigits/1: one\nbeep: [a tone]\nlost: Not here.\nhello: again\n"
        (tmp_path / code / "core.txt.gz").write_bytes(gzip.compress(listed.encode("utf-8-sig")))
    raw = {"samplerate": 8000, "channels": 1, "format": "RAW", "subtype": "GSM610", "dtype": "int16"}
    expected, _ = soundfile.read(tmp_path / "fr-gsm" / "fr_voice" / "hello.gsm", **raw)
    prepare_prompts(tmp_path)
    found = answers(tmp_path / "prompts.jsonl")
    assert {id: said for id, said in found.items() if id.startswith("fr")} == {
        "fr-hello-words": "Hello to you, all.",
        "fr-hello-language": "French",
        "fr-digits/1-words": "one",
    }
    assert len(found) == 3 * len(LANGUAGES)
    assert np.array_equal(soundfile.read(tmp_path / "fr" / "hello.flac", dtype="int16")[0], expected)
    assert {file.suffix for file in tmp_path.rglob("*") if file.is_file()} == {".flac", ".jsonl"}


def test_sentences_are_matched_with_their_recordings(tmp_path: Path) -> None:
    (tmp_path / "transcription").write_text("<s> he was  young </s> (a-1)\n\n<s> so was she </s> (a-2)\n")
    for name in ("a-1.wav", "a-2.wav", "fileids"):
        (tmp_path / name).write_bytes(b"")
    prepare_librivox(tmp_path)
    assert answers(tmp_path / "sentences.jsonl") == {"a-1": "he was  young", "a-2": "so was she"}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a-1.wav", "a-2.wav", "sentences.jsonl"]


def test_only_photos_and_clips_that_are_asked_about_stay(tmp_path: Path) -> None:
    for name in ("coffee.png", "unknown.png", "bikes.mp4"):
        (tmp_path / name).write_bytes(b"")
    prepare_photos(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["coffee.png", "questions.jsonl"]
    (tmp_path / "bikes.mp4").write_bytes(b"")
    prepare_clips(tmp_path)
    assert {row["video"] for row in lines(tmp_path / "questions.jsonl")} >= {"bikes.mp4", "cockatoo.mp4"}


def test_stamps_speak_where_they_have_a_voice(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "a" / "cat.png")
    (tmp_path / "a" / "cat.txt").write_text("A cat.\nde.utf8=Eine Katze.\nfr.utf8=\nxx.utf8=?\nbroken\n")
    (tmp_path / "a" / "drawn.svg").write_text("<svg/>")
    for name in ("cat_desc.ogg", "cat_desc_de.ogg", "cat.ogg"):
        (tmp_path / "a" / name).write_bytes(b"")
    prepare_stamps(tmp_path)
    assert answers(tmp_path / "sentences.jsonl") == {"a/cat-en": "A cat.", "a/cat-de": "Eine Katze."}
    voices = {row["audio"] for row in lines(tmp_path / "voices.jsonl")}
    assert voices == {"a/cat_desc.ogg", "a/cat_desc_de.ogg"}
    assert not list(tmp_path.rglob("*.svg"))


def test_furniture_becomes_points_on_its_surface_in_its_colours(tmp_path: Path) -> None:
    # A square of red, of area 1 at z = 0, and a triangle of blue, of area 3 at z = 1, whose corners are counted back.
    model = "mtllib c.mtl\nv 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nusemtl red\nf 1/1/1 2 3 4\nusemtl blue\n"
    model += "v 0 0 1\nv 3 0 1\nv 0 2 1\nf -3 -2 -1\n"
    entries = {"name": "Ch\\u00e4ir", "category": "Room", "icon": "/i/c.png", "model": "/i/c.obj", "creator": "Ada"}
    Image.new("RGB", (4, 4)).save(tmp_path / "c.png")
    with zipfile.ZipFile(tmp_path / "Set-CC-0.sh3f", "w") as catalogue:
        text = "".join(f"{key}#1={value}\n" for key, value in entries.items())
        catalogue.writestr("PluginFurnitureCatalog.properties", text + "name#2=Lost\nicon#2=/i/d.png\n")
        catalogue.writestr("i/c.obj", model)
        catalogue.writestr("i/c.mtl", "newmtl red\nKd 1 0 0\nnewmtl blue\nKd 0 0 1\n")
        catalogue.write(tmp_path / "c.png", "i/c.png")
    prepare_furniture(tmp_path)
    points = np.load(tmp_path / "points" / "Set-CC-0-1.npy")
    assert points.shape == (POINTS, 6)
    red = points[:, 3] == 1
    assert np.array_equal(red, points[:, 2] == 0)
    assert np.array_equal(~red, (points[:, 5] == 1) & (points[:, 2] == 1))
    assert ((points[red, :2] >= 0) & (points[red, :2] <= 1)).all()
    assert (points[~red, 0] / 3 + points[~red, 1] / 2 <= 1 + 1e-6).all()  # float32 rounds to either side of the edge
    # Of 8,192 points a quarter lies on the square, give or take four standard deviations of 39.
    assert abs(int(red.sum()) - POINTS // 4) < 160
    found = answers(tmp_path / "furniture.jsonl")
    assert found["Set-CC-0-1-points"] == "Chäir"
    assert found["Set-CC-0-1-image-kind"] == "Room"
    assert {row["licence"] for row in lines(tmp_path / "furniture.jsonl")} == {"CC0"}
    assert {file.suffix for file in media(tmp_path, "furniture.jsonl") if file.is_file()} == {".npy", ".png"}


def thing(number: int) -> Emoji:
    names = {"en": f"thing {number}", "de": f"Ding {number}"}
    return Emoji(f"{number:X}", 3, names, (f"word {number}", f"own {number}"))


@given(st.integers(0, 10_000))
def test_a_grids_answers_are_what_its_cells_show(seed: int) -> None:
    chance = random.Random(seed)
    things = [thing(number) for number in range(12)]
    shown = dict(zip(sorted(chance.sample(range(9), 4)), chance.sample(things, 4), strict=True))
    questions = emoji._questions(shown, things, chance)
    assert questions["count"][1] == "4"
    place = {one.names["en"]: PLACES[cell] for cell, one in shown.items()}
    asked_for = questions["where"][0].removeprefix("Where is this: ").removesuffix("?")
    assert place[asked_for] == questions["where"][1]
    at = questions["which"][0].removeprefix("What is shown at this place: ").removesuffix("?")
    assert place[questions["which"][1]] == at
    sought = questions["present"][0].removeprefix("Is this in the picture: ").removesuffix("?")
    assert questions["present"][1] == ("yes" if sought in place else "no")


def test_a_grid_shows_each_emoji_in_its_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emoji, "_GRIDS", 3)
    (tmp_path / "images").mkdir()
    (tmp_path / "grids").mkdir()
    things = [thing(number) for number in range(10)]
    for number, one in enumerate(things):
        Image.new("RGB", (128, 128), (number * 25, 0, 0)).save(tmp_path / one.picture)
    rows = list(emoji._grid_rows(tmp_path, things))
    assert len(rows) == 12
    for row in rows:
        grid = Image.open(tmp_path / row["image"])
        cells = {place: grid.getpixel((32 + n % 3 * 64, 32 + n // 3 * 64)) for n, place in enumerate(PLACES)}
        said = row["conversations"][1]["value"]
        if row["type"] == "count":
            assert sum(colour != (255, 255, 255) for colour in cells.values()) == int(said)
        if row["type"] == "which":
            place = row["conversations"][0]["value"].partition(": ")[2].removesuffix("?")
            assert cells[place] == (int(said.removeprefix("thing ")) * 25, 0, 0)


def test_only_one_of_the_words_to_choose_from_is_the_emojis_own() -> None:
    things = [thing(number) for number in range(20)]
    rows = list(emoji._word_rows([*things, things[0]._replace(code="FF", words=())]))
    assert len(rows) == len(things)
    for one, row in zip(things, rows, strict=True):
        listed = row["conversations"][0]["value"].partition(": ")[2].removesuffix("?")
        choices = listed.replace(" or ", ", ").split(", ")
        assert len(set(choices)) == 4
        assert [choice for choice in choices if choice in one.words] == [row["conversations"][1]["value"]]
    assert rows == list(emoji._word_rows(things))


class Font:
    """Draws what it has, two pictures wide for two characters, and nothing for what it hasn't."""

    def getlength(self, text: str) -> float:
        return 136.0 * len(text)


def test_an_emoji_that_the_font_has_no_picture_of_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(self: ImageDraw.ImageDraw, place: Any, text: str, **kwargs: Any) -> None:
        if text != "missing":
            self.rectangle((10, 10, 20, 20), fill="#ff000080")

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", draw)
    font: Any = Font()
    shown = emoji._picture("a", font)
    assert shown is not None
    assert (shown.mode, shown.size) == ("RGB", (128, 128))
    assert shown.getpixel((0, 0)) == (255, 255, 255)
    assert shown.getpixel((10, 15)) == (255, 127, 127)
    assert emoji._picture("ab", font) is None
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda *args, **kwargs: None)
    assert emoji._picture("m", font) is None


def test_names_are_asked_for_in_each_language() -> None:
    found = list(emoji._name_rows([thing(1)]))
    assert json.dumps(found, ensure_ascii=False).count("Answer in German") == 1
    assert {row["language"]: row["conversations"][1]["value"] for row in found} == {"en": "thing 1", "de": "Ding 1"}
