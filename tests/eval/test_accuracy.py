from dataclasses import dataclass, field, replace

import pytest

from mmsft.assistant import swap_media
from mmsft.errors import DataError
from mmsft.eval.accuracy import accuracy, normalise
from mmsft.types import Conversation, Media, Role, Text, Turn


@dataclass
class Parrot:
    """Answers by the last word of the question, and remembers what it was asked."""

    asked: list[Conversation] = field(default_factory=list)

    def answers(self, conversations: list[Conversation], **options: int) -> list[str]:
        self.asked += conversations
        return [conversation.turns[-1].text.split()[-1] for conversation in conversations]


def question(number: int, ask: str, answer: str, *media: Media, role: Role = "assistant") -> Conversation:
    turns = (Turn("user", (*media, Text(ask))), Turn(role, (Text(answer),)))
    return Conversation(f"a:{number}", turns, {"kind": "odd" if number % 2 else "even"})


def test_accuracy_is_counted_in_all_and_by_tag() -> None:
    rows = [question(1, "say Red.", "red"), question(2, "say blue", "Blue. "), question(3, "say green", "red")]
    parrot = Parrot()
    score = accuracy(parrot, rows, 8)  # type: ignore[arg-type]
    assert score.accuracy == pytest.approx(2 / 3)
    assert score.by_tag == {"kind": {"even": 1.0, "odd": 0.5}}
    assert [(answer.id, answer.question, answer.reference, answer.correct) for answer in score.answers][2] == (
        "a:3", "say green", "red", False
    )  # fmt: skip
    assert all(conversation.turns[-1].role == "user" for conversation in parrot.asked), "the answer was shown"


def test_a_row_without_a_reference_is_refused() -> None:
    with pytest.raises(DataError, match="a:1: the last turn is the user's"):
        accuracy(Parrot(), [question(1, "a", "b", role="user")], 8)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "norm"), [(" Yes.\n", "yes"), ("3.5", "3.5"), ("U.S.", "u.s"), ("STRASSE", "strasse")]
)
def test_normalising_forgives_case_space_and_a_full_stop(text: str, norm: str) -> None:
    assert normalise(text) == norm


def pictures(*names: str) -> list[Media]:
    return [Media("image", name) for name in names]


@pytest.mark.parametrize("seed", range(20))
def test_swapping_gives_no_row_a_picture_of_its_own(seed: int) -> None:
    a, b, c, d, e, *more = pictures(*"abcdefghijk")
    owned = [(a,), (a, b), (b, c), (d,), (e, a), (c,), *((one,) for one in more)]
    rows = [question(number, "?", "!", *own) for number, own in enumerate(owned)]
    for before, after in zip(rows, swap_media(rows, seed), strict=True):
        assert len(before.turns[0].media) == len(after.turns[0].media)
        assert not set(before.turns[0].media) & set(after.turns[0].media)
        assert before.turns[1:] == after.turns[1:]


def test_rows_about_one_picture_stay_together_and_modalities_apart() -> None:
    sound, other = Media("audio", "1"), Media("audio", "2")
    owned = [pictures("a"), pictures("a"), pictures("b"), [sound], [other]]
    rows = [question(number, "?", "!", *own) for number, own in enumerate(owned)]
    swapped = [row.turns[0].media[0] for row in swap_media(rows, 0)]
    assert swapped == [*pictures("b", "b", "a"), other, sound]


def test_one_picture_cannot_be_swapped() -> None:
    with pytest.raises(DataError, match="1 different image media can't be swapped"):
        swap_media([question(1, "?", "!", *pictures("a")), question(2, "?", "!", *pictures("a"))], 0)


def test_text_rows_are_left_as_they_are() -> None:
    rows = [replace(question(1, "?", "!"))]
    assert swap_media(rows, 0) == rows
