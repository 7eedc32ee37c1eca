from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from mmsft.errors import DataError
from mmsft.serve.chat import Dialogue
from mmsft.types import Conversation, Media


@dataclass
class Towers:
    towers: tuple[str, ...] = ("image",)


@dataclass
class Echo:
    """Answers with what it was sent, in short."""

    reader: Towers = field(default_factory=Towers)

    def read(self, media: Media) -> Media:
        if media.ref == "gone.png":
            raise DataError("gone.png: no such file")
        return media

    def answers(self, conversations: Sequence[Conversation], **options: object) -> list[str]:
        [conversation] = conversations
        if "long" in conversation.turns[-1].text:
            raise DataError("too long")
        return [" ".join(f"{turn.role[0]}{len(turn.media)}" for turn in conversation.turns)]


def dialogue(system: str | None = None) -> Dialogue:
    assistant: Any = Echo()
    return Dialogue(assistant, system)


def said(*lines: str) -> list[str]:
    """Returns what a dialogue shows for the lines."""
    shown: list[str] = []
    dialogue().talk(lines, shown.append)
    return shown


def test_every_question_has_its_history() -> None:
    talk = dialogue("Be brief.")
    talk.attach(Media("image", "a.png"))
    assert talk.say("One?") == "s0 u1"
    assert talk.say("Two?") == "s0 u1 a0 u0"
    talk.reset()
    assert talk.say("Three?") == "s0 u0"


def test_a_question_that_fails_leaves_the_dialogue_as_it_was() -> None:
    assert said("One?", "long?", "Two?", "", "never") == ["u0", "error: too long", "u0 a0 u0"]


def test_a_missing_medium_is_said_at_once_and_costs_neither_the_history_nor_the_other_media() -> None:
    lines = ("One?", "/image a.png", "/image gone.png", "Two?")
    assert said(*lines) == ["u0", "error: gone.png: no such file", "u0 a0 u1"]


def test_media_go_with_the_next_question_only() -> None:
    assert said("/image a.png", "/image b.png", "One?", "Two?") == ["u2", "u2 a0 u0"]


def test_a_fresh_start_forgets_the_media_that_wait() -> None:
    assert said("One?", "/image a.png", "/new", "Two?") == ["u0", "u0"]


def test_a_medium_without_a_tower_is_an_error_and_no_question() -> None:
    known = "media of this model: /image FILE; or /new, or an empty line to end"
    assert said("/audio a.wav", "/etc/hosts is what?") == [f"error: /audio: no such command; {known}", "u0"]


def test_a_command_without_its_file_is_an_error_and_no_question() -> None:
    assert said("/image", "/help")[0] == "error: /image: which file? write /image FILE"


def test_nothing_is_no_question() -> None:
    talk = dialogue()
    with pytest.raises(DataError, match="'  ' asks nothing; write a question, or attach a medium"):
        talk.say("  ")
    talk.attach(Media("image", "a.png"))
    assert talk.say("") == "u1"
