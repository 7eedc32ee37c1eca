from collections.abc import Sequence
from dataclasses import dataclass, field

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

    def answers(self, conversations: Sequence[Conversation], **options: object) -> list[str]:
        [conversation] = conversations
        if any(medium.ref == "gone.png" for turn in conversation.turns for medium in turn.media):
            raise DataError("gone.png: no such file")
        return [" ".join(f"{turn.role[0]}{len(turn.media)}" for turn in conversation.turns)]


def dialogue(system: str | None = None) -> Dialogue:
    return Dialogue(Echo(), system)  # type: ignore[arg-type]


def test_every_question_has_its_history() -> None:
    talk = dialogue("Be brief.")
    assert talk.say("One?", [Media("image", "a.png")]) == "s0 u1"
    assert talk.say("Two?") == "s0 u1 a0 u0"
    talk.reset()
    assert talk.say("Three?") == "s0 u0"


def test_a_question_that_fails_leaves_the_dialogue_as_it_was() -> None:
    shown: list[str] = []
    talk = dialogue()
    talk.talk(["One?", "/image gone.png", "Two?", "Three?", "", "never"], shown.append)
    assert shown == ["u0", "error: gone.png: no such file", "u0 a0 u0"]


def test_media_go_with_the_next_question_only() -> None:
    shown: list[str] = []
    talk = dialogue()
    talk.talk(["/image b.png", "One?", "/new", "Two?", "/imagine"], shown.append, [Media("image", "a.png")])
    assert shown == ["u2", "u0", "u0 a0 u0"]


def test_a_medium_without_a_tower_is_an_error_and_no_question() -> None:
    shown: list[str] = []
    dialogue().talk(["/audio a.wav", "/etc/hosts is what?"], shown.append)
    assert shown == ["error: /audio: no such command; media of this model: /image FILE; or /new", "u0"]
