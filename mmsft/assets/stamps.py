"""Tux Paint's stamps: pictures with a sentence in many languages, which a voice reads in some of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from mmsft.assets.rows import asked, write_lines

LANGUAGES: Final = {
    "be": "Belarusian", "bg": "Bulgarian", "ca": "Catalan", "da": "Danish", "de": "German", "el": "Greek",
    "en": "English", "es": "Spanish", "fr": "French", "it": "Italian", "ja": "Japanese", "ko": "Korean",
    "nl": "Dutch", "pl": "Polish", "pt": "Portuguese", "ro": "Romanian", "ru": "Russian", "sv": "Swedish",
}  # fmt: skip
"""Of the sentences, by the codes of Tux Paint."""

_KEPT: Final = (".png", ".ogg", ".jsonl")


def prepare_stamps(folder: Path) -> None:
    """Writes rows for the pictures in pixels, and for their voices; drawings in lines go, as no tower reads them."""
    stamps = [file for file in sorted(folder.rglob("*.png")) if file.with_suffix(".txt").is_file()]
    write_lines(folder / "sentences.jsonl", _sentence_rows(folder, stamps))
    write_lines(folder / "voices.jsonl", _voice_rows(folder, stamps))
    for file in [file for file in folder.rglob("*") if file.is_file() and file.suffix not in _KEPT]:
        file.unlink()


def _sentence_rows(folder: Path, stamps: list[Path]) -> Iterator[dict[str, Any]]:
    for stamp in stamps:
        name = str(stamp.relative_to(folder).with_suffix(""))
        for code, sentence in _sentences(stamp).items():
            question = f"What is this? Answer in {LANGUAGES[code]}."
            yield asked(f"{name}-{code}", {"image": f"{name}.png"}, question, sentence, language=code)


def _voice_rows(folder: Path, stamps: list[Path]) -> Iterator[dict[str, Any]]:
    for stamp in stamps:
        name = str(stamp.relative_to(folder).with_suffix(""))
        for code, sentence in _sentences(stamp).items():
            voice = f"{name}_desc{'' if code == 'en' else f'_{code}'}.ogg"
            if (folder / voice).is_file():
                media = {"image": f"{name}.png", "audio": voice}
                yield asked(f"{name}-{code}", media, "What does the voice say of the picture?", sentence, language=code)


def _sentences(stamp: Path) -> dict[str, str]:
    """Returns the sentences of a stamp by language: English on the first line, then ``de.utf8=…``."""
    first, *others = stamp.with_suffix(".txt").read_text(encoding="utf-8", errors="replace").splitlines() or [""]
    told = {"en": first.strip()}
    for line in others:
        code, _, sentence = line.partition(".utf8=")
        if code in LANGUAGES:
            told[code] = sentence.strip()
    return {code: sentence for code, sentence in told.items() if sentence and "�" not in sentence}
