"""Media of a thread that is too long are read as large as fits, whatever offers smaller readings."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsft.adapters.spec import Layout, Slots
from mmsft.data.chat import ChatEncoder
from mmsft.data.fit import OverLong, TooLong
from mmsft.data.media_reader import Reading
from mmsft.data.shrink import shrunk
from mmsft.data.template import resolve_template
from mmsft.data.tree import threads
from mmsft.types import Conversation, Media, Text, Turn
from tests.data.conftest import byte_level
from tests.data.dialogues import assistant, conversation
from tests.model import seq2seq

Ladders = Mapping[str, Sequence[int]]
"""By a medium's name the tokens of its readings."""


def tokens(media: Media, ladders: Ladders) -> int:
    return ladders[str(media.ref)][int(dict(media.options).get("step", 0))]


def readings(media: Media, ladders: Ladders) -> list[Reading]:
    ladder = ladders[str(media.ref)]
    ways = [Media(media.modality, media.ref, (("step", step),) if step else ()) for step in range(len(ladder))]
    return [Reading(way, count) for way, count in zip(ways, ladder, strict=True)]


def show(*names: str) -> Turn:
    return Turn("user", tuple(Media("image", name) for name in names))


def sizes(talk: Conversation, ladders: Ladders) -> dict[str, int]:
    return {str(medium.ref): tokens(medium, ladders) for turn in talk.turns for medium in turn.media}


def fitted(talk: Conversation, ladders: Ladders, length: int) -> tuple[dict[str, int], Mapping[tuple[int, ...], str]]:
    """Shrinks the threads that are too long; a thread is as long as its media."""

    def measure(chain: Conversation) -> int:
        return sum(tokens(medium, ladders) for turn in chain.turns for medium in turn.media)

    long = [path for path in talk.threads() if measure(talk.chain(path)) > length]
    found = shrunk(talk, long, lambda medium: readings(medium, ladders), measure, length)
    assert {was.media.ref: now.tokens for was, now in found.sizes} == {
        name: size for name, size in sizes(found.conversation, ladders).items() if size != ladders[name][0]
    }
    return sizes(found.conversation, ladders), found.refused


LADDERS = {"large": (16, 9, 4, 1), "small": (4, 1), "fixed": (5,)}


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (25, {"large": 16, "small": 4, "fixed": 5}),
        (24, {"large": 9, "small": 4, "fixed": 5}),
        (18, {"large": 9, "small": 4, "fixed": 5}),
        (17, {"large": 4, "small": 4, "fixed": 5}),
        (12, {"large": 1, "small": 1, "fixed": 5}),
        (7, {"large": 1, "small": 1, "fixed": 5}),
    ],
)
def test_the_largest_shrink_first_and_no_further_than_needed(length: int, expected: dict[str, int]) -> None:
    assert fitted(conversation(show("large", "small", "fixed")), LADDERS, length) == (expected, {})


def test_what_does_not_fit_at_its_smallest_stays_as_it_is_and_says_so() -> None:
    found, refused = fitted(conversation(show("large", "small", "fixed")), LADDERS, 6)
    assert found == {"large": 16, "small": 4, "fixed": 5}
    assert refused == {(0,): "with its media read as small as they can be it has 7"}
    _, refused = fitted(conversation(show("fixed")), LADDERS, 4)
    assert refused == {(0,): "its image media can't be read smaller"}


def test_of_a_tree_only_threads_that_are_too_long_shrink_and_what_they_share_once() -> None:
    branches = (show("small"), Turn("user", (Media("image", "large"),), parent=0), Turn("user", (), parent=0))
    talk = Conversation("r:1", (*branches, Turn("user", (Media("image", "fixed"),), parent=0)))
    assert fitted(talk, LADDERS, 13)[0] == {"small": 4, "large": 9, "fixed": 5}
    assert fitted(talk, LADDERS, 9)[0] == {"small": 4, "large": 4, "fixed": 5}
    # The first of two threads that are too long has what they share read smaller, so that the second one fits.
    assert fitted(talk, LADDERS, 7) == ({"small": 1, "large": 1, "fixed": 5}, {})
    found, refused = fitted(talk, LADDERS, 5)
    assert found == {"small": 1, "large": 1, "fixed": 5}
    assert refused == {(0, 3): "with its media read as small as they can be it has 6"}


@given(st.data())
def test_it_fits_if_it_can_and_no_medium_could_be_larger_alike(data: st.DataObject) -> None:
    ladders = {
        name: sorted(data.draw(st.sets(st.integers(1, 50), min_size=1, max_size=4)), reverse=True) for name in "abc"
    }
    length = data.draw(st.integers(1, 160))
    found, refused = fitted(conversation(show(*"abc")), ladders, length)
    whole, least = ({name: ladder[which] for name, ladder in ladders.items()} for which in (0, -1))
    if sum(whole.values()) <= length or sum(least.values()) > length:
        assert found == whole
        assert bool(refused) == (sum(whole.values()) > length)
        return
    assert sum(found.values()) <= length
    cap = max(found.values())
    larger = min((size for ladder in ladders.values() for size in ladder if size > cap), default=None)
    if larger is not None:
        under = {
            name: next((size for size in ladder if size <= larger), ladder[-1]) for name, ladder in ladders.items()
        }
        assert sum(under.values()) > length


def encoder(length: int, ladders: Ladders, too_long: OverLong = "shrink") -> ChatEncoder:
    def slots(media: Media) -> Layout:
        return (Slots(tokens(media, ladders)),)

    tokenizer = byte_level()
    return ChatEncoder(
        tokenizer,
        resolve_template("chatml", tokenizer),
        length=length,
        too_long=too_long,
        slots=slots,
        readings=lambda media: readings(media, ladders),
    )


def asked(*names: str) -> Conversation:
    return conversation(Turn("user", (*show(*names).parts, Text("Which?"))), assistant("both"))


def test_a_row_is_encoded_with_the_readings_that_fit_and_its_note_has_their_sizes() -> None:
    ladders = {"large": (400, 100), "small": (50, 10)}
    whole = encoder(10_000, ladders).encode(asked("large", "small"))
    words = len(whole) - 450
    encoded = encoder(words + 150, ladders).encode(asked("large", "small"))
    assert [len(placed.slots) for placed in encoded.media] == [100, 50]
    assert (len(encoded), encoded.shrunk, encoded.left_out, encoded.trimmed) == (words + 150, 1, 0, True)
    assert encoded.targets.token.tolist() == whole.targets.token.tolist()
    assert encoded.note.startswith("1 of its media are read smaller, 400 → 100 tokens, <image: large> 400 → 100: ")
    assert f"{len(whole)} tokens" in encoded.note
    assert not encoder(len(whole), ladders).encode(asked("large", "small")).trimmed


def test_a_row_that_can_not_shrink_is_dropped_and_says_why() -> None:
    with pytest.raises(TooLong, match="its image media can't be read smaller"):
        encoder(100, {"fixed": (400,)}).encode(asked("fixed"))
    with pytest.raises(TooLong, match="with its media read as small as they can be it has"):
        encoder(100, {"large": (400, 300)}).encode(asked("large"))
    with pytest.raises(TooLong, match="it has no media to read smaller"):
        encoder(10, {}).encode(asked())
    with pytest.raises(TooLong, match=r"the row$"):
        encoder(100, {"large": (400, 10)}, "drop").encode(asked("large"))


def test_a_prompt_shrinks_as_in_training() -> None:
    ladders = {"large": (400, 100, 20)}
    prompt = conversation(asked("large").turns[0])
    words = len(encoder(10_000, ladders).prompt(prompt)) - 400
    assert len(encoder(words + 100, ladders).prompt(prompt)) == words + 100
    with pytest.raises(TooLong):
        encoder(words + 100, ladders, "trim").prompt(prompt)


def test_an_encoders_prompts_shrink_too_each_reply_for_itself() -> None:
    ladders = {"large": (60, 10), "small": (12, 4)}
    made = replace(
        seq2seq.encoder("t5"),
        slots=lambda media: (Slots(tokens(media, ladders)),),
        readings=lambda media: readings(media, ladders),
        too_long="shrink",
    )
    turns = (*asked("large").turns, *asked("small").turns)
    whole = replace(made, length=10_000).encode(conversation(*turns))
    longest = max(map(len, threads(whole)))
    encoded = replace(made, length=longest - 50).encode(conversation(*turns))
    assert {len(placed.slots) for placed in encoded.media} == {10, 12}
    assert (encoded.shrunk, encoded.left_out) == (1, 0)
    assert encoded.targets.token.tolist() == whole.targets.token.tolist()
