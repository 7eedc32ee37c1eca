"""Speech with its words: telephone prompts in five languages, and sentences that LibriVox's readers read."""

import gzip
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from mmsft.assets.rows import asked, write_lines

LANGUAGES: Final = {"en": "English", "es": "Spanish", "fr": "French", "it": "Italian", "ru": "Russian"}
"""Of the prompts, by the codes of Asterisk."""

_RATE: Final = 8000
_DESCRIBED: Final = re.compile(r"[\[(<]")
_NAMES_A_LANGUAGE: Final = 3  # words; fewer may be said alike in several languages
_LINE: Final = re.compile(r"<s>\s*(.*?)\s*</s>\s*\((.*)\)")


def prepare_prompts(folder: Path) -> None:
    """Writes the prompts as FLAC, which data readers and browsers take, and two questions on each: words, language."""
    rows = [row for code in LANGUAGES for row in _prompts(folder, code)]
    write_lines(folder / "prompts.jsonl", rows)
    for code in LANGUAGES:
        shutil.rmtree(folder / f"{code}-gsm")


def _prompts(folder: Path, code: str) -> Iterator[dict[str, Any]]:
    """Yields rows of the prompts whose words are known."""
    import soundfile

    [packed] = (folder / code).glob("*.txt.gz")
    listed = gzip.decompress(packed.read_bytes()).decode("utf-8-sig")
    packed.unlink()
    for name, words in _listed(listed).items():
        [*sources] = (folder / f"{code}-gsm").glob(f"*/{name}.gsm")
        if not sources:
            continue
        # GSM 06.10 without a header: 8 kHz, one channel, as Asterisk's prompts are.
        raw = {"samplerate": _RATE, "channels": 1, "format": "RAW", "subtype": "GSM610"}
        sound, _ = soundfile.read(sources[0], dtype="int16", **raw)
        file = folder / code / f"{name}.flac"
        file.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(file, sound, _RATE)
        audio = {"audio": f"{code}/{name}.flac"}
        yield asked(f"{code}-{name}-words", audio, "What is said?", " ".join(words), task="words", language=code)
        if len(words) >= _NAMES_A_LANGUAGE:
            said, told = LANGUAGES[code], {"task": "language", "language": code}
            yield asked(f"{code}-{name}-language", audio, "Which language is spoken?", said, **told)


def _listed(text: str) -> dict[str, list[str]]:
    """Returns the words of each prompt of a list of ``name: words``, without those that describe a sound."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        name, _, said = line.partition(":")
        if said.strip() and not line.startswith(";") and not _DESCRIBED.search(said):
            found.setdefault(name, said.split())
    return found


def prepare_librivox(folder: Path) -> None:
    """Writes the sentences that are read as rows."""
    lines = (folder / "transcription").read_text(encoding="utf-8").splitlines()
    found = [match.groups() for line in lines if (match := _LINE.fullmatch(line.strip()))]
    rows = [asked(name, {"audio": f"{name}.wav"}, "What is said?", said, language="en") for said, name in found]
    write_lines(folder / "sentences.jsonl", rows)
    for file in folder.iterdir():
        if file.suffix not in (".wav", ".jsonl"):
            file.unlink()
