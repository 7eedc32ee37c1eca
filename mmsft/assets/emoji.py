"""Emoji as pictures: their names in 28 languages, words that fit them, and up to nine in a grid to find and count."""

import json
import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from mmsft.assets.rows import asked, write_lines
from mmsft.errors import ConfigError

if TYPE_CHECKING:
    from PIL import Image, ImageFont

LANGUAGES: Final = {
    "bn": "Bengali", "da": "Danish", "de": "German", "en": "English", "en-gb": "British English", "es": "Spanish",
    "es-mx": "Mexican Spanish", "et": "Estonian", "fi": "Finnish", "fr": "French", "hi": "Hindi", "hu": "Hungarian",
    "it": "Italian", "ja": "Japanese", "ko": "Korean", "lt": "Lithuanian", "ms": "Malay", "nb": "Norwegian",
    "nl": "Dutch", "pl": "Polish", "pt": "Portuguese", "ru": "Russian", "sv": "Swedish", "th": "Thai",
    "uk": "Ukrainian", "vi": "Vietnamese", "zh": "Chinese", "zh-hant": "Traditional Chinese",
}  # fmt: skip
"""Of the names, by the codes of emojibase."""

PLACES: Final = (
    "top left", "top centre", "top right", "centre left", "centre", "centre right", "bottom left", "bottom centre",
    "bottom right",
)  # fmt: skip
"""Of the cells of a grid, row by row."""

_FONT: Final = "NotoColorEmoji.ttf"
_STRIKE: Final = 109  # the only size, in pixels, that the font has pictures of
_SIDE: Final = 128
_CELL: Final = 64
_GRIDS: Final = 1000
_THINGS: Final = range(3, 8)  # emojibase's groups from animals to objects: faces are too alike to ask which is where
_PARTS: Final = 2  # emojibase's group of skins and hair, which are no emoji by themselves
_CHOICES: Final = 4


class Emoji(NamedTuple):
    """An emoji that the font draws.

    Attributes:
        code: its code points.
        group: emojibase's number of what it is about.
        names: by language.
        words: English, that fit it.
    """

    code: str
    group: int
    names: Mapping[str, str]
    words: tuple[str, ...]

    @property
    def picture(self) -> str:
        """Its file."""
        return f"images/{self.code}.png"


def prepare_emoji(folder: Path) -> None:
    """Draws the emoji and the grids, and writes the rows about them; the packages' files go."""
    font = _font(folder / _FONT)
    (folder / "images").mkdir()
    found = list(_drawn(folder, font))
    write_lines(folder / "names.jsonl", _name_rows(found))
    write_lines(folder / "words.jsonl", _word_rows(found))
    (folder / "grids").mkdir()
    write_lines(folder / "grids.jsonl", _grid_rows(folder, [one for one in found if one.group in _THINGS]))
    (folder / _FONT).unlink()
    for code in LANGUAGES:
        shutil.rmtree(folder / code)


def _font(file: Path) -> "ImageFont.FreeTypeFont":
    from PIL import ImageFont, features

    if not features.check("raqm"):
        raise ConfigError(
            "flags and families are drawn by Pillow's Raqm, which needs the library FriBiDi: install libfribidi0 "
            "(Debian, Ubuntu) or fribidi (elsewhere), and Pillow from its wheel"
        )
    return ImageFont.truetype(str(file), _STRIKE, layout_engine=ImageFont.Layout.RAQM)


def _drawn(folder: Path, font: "ImageFont.FreeTypeFont") -> Iterator[Emoji]:
    """Yields the emoji that the font has as one picture, drawn; one that looks like another would have two names."""
    names: dict[str, dict[str, str]] = {}
    for language in LANGUAGES:
        for entry in json.loads((folder / language / "data.json").read_text(encoding="utf-8")):
            names.setdefault(entry["hexcode"], {})[language] = entry["label"]
    seen: set[bytes] = set()
    for entry in json.loads((folder / "en" / "data.json").read_text(encoding="utf-8")):
        code = entry["hexcode"]
        picture = _picture(entry["emoji"], font) if entry.get("group", _PARTS) != _PARTS else None
        if picture is not None and picture.tobytes() not in seen:
            seen.add(picture.tobytes())
            one = Emoji(code, entry["group"], names[code], tuple(entry.get("tags", ())))
            picture.save(folder / one.picture)
            yield one


def _picture(text: str, font: "ImageFont.FreeTypeFont") -> "Image.Image | None":
    """Returns a picture on white; None where the font has none, or draws the characters side by side."""
    from PIL import Image, ImageDraw

    width = font.getlength("\N{GRINNING FACE}")
    if font.getlength(text) > width + 1:
        return None
    canvas = Image.new("RGBA", (round(width), _SIDE), "#ffffff00")
    ImageDraw.Draw(canvas).text((0, 0), text, font=font, embedded_color=True)
    if canvas.getbbox() is None:
        return None
    left = (canvas.width - _SIDE) // 2
    white = Image.new("RGBA", (_SIDE, _SIDE), "white")
    white.alpha_composite(canvas.crop((left, 0, left + _SIDE, _SIDE)))
    return white.convert("RGB")


def _name_rows(found: Sequence[Emoji]) -> Iterator[dict[str, Any]]:
    for one in found:
        for language, name in one.names.items():
            question = f"What does this emoji show? Answer in {LANGUAGES[language]}."
            yield asked(f"{one.code}-{language}", {"image": one.picture}, question, name, language=language)


def _word_rows(found: Sequence[Emoji]) -> Iterator[dict[str, Any]]:
    """Yields for each emoji one of its words, to be found among words of others."""
    every = sorted({word for one in found for word in one.words})
    for one in found:
        if not one.words:
            continue
        chance = random.Random(one.code)
        own = set(one.words)
        right = chance.choice(one.words)
        others = [word for word in chance.sample(every, len(own) + _CHOICES) if word not in own]
        choices = [right, *others[: _CHOICES - 1]]
        chance.shuffle(choices)
        listed = ", ".join(choices[:-1]) + " or " + choices[-1]
        yield asked(f"{one.code}-word", {"image": one.picture}, f"Which word fits it best: {listed}?", right)


def _grid_rows(folder: Path, things: Sequence[Emoji]) -> Iterator[dict[str, Any]]:
    """Yields four questions on each of the grids, and draws these."""
    from PIL import Image

    small = {one.code: Image.open(folder / one.picture).resize((_CELL, _CELL)) for one in things}
    for number in range(_GRIDS):
        chance = random.Random(f"grid {number}")
        cells = sorted(chance.sample(range(len(PLACES)), chance.randint(2, len(PLACES))))
        shown = dict(zip(cells, chance.sample(things, len(cells)), strict=True))
        grid = Image.new("RGB", (3 * _CELL, 3 * _CELL), "white")
        for cell, one in shown.items():
            grid.paste(small[one.code], (cell % 3 * _CELL, cell // 3 * _CELL))
        name = f"grids/{number:04}.png"
        grid.save(folder / name)
        for kind, (question, answer) in _questions(shown, things, chance).items():
            yield asked(f"grid-{number:04}-{kind}", {"image": name}, question, answer, type=kind)


def _questions(
    shown: Mapping[int, Emoji], things: Sequence[Emoji], chance: random.Random
) -> dict[str, tuple[str, str]]:
    """Returns question and answer by what is asked for; half of the things that are looked for aren't there."""
    where, which = chance.choice(list(shown)), chance.choice(list(shown))
    there = chance.random() < 0.5
    absent = [one for one in things if one not in shown.values()]
    sought = chance.choice(list(shown.values()) if there else absent)
    return {
        "count": ("How many emoji are in the picture?", str(len(shown))),
        "where": (f"Where is this: {shown[where].names['en']}?", PLACES[where]),
        "which": (f"What is shown at this place: {PLACES[which]}?", shown[which].names["en"]),
        "present": (f"Is this in the picture: {sought.names['en']}?", "yes" if there else "no"),
    }
