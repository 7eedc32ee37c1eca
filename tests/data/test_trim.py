"""Rows that are too long: dropped, trimmed behind an answer, or the end of the run."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsft.data.chat import ChatEncoder
from mmsft.data.fit import OverLong, TooLong, Unfit
from mmsft.data.template import resolve_template
from mmsft.data.trim import trimmed
from mmsft.types import ROOT, Conversation, Text, Turn
from tests.data.conftest import byte_level
from tests.data.dialogues import assistant, conversation, user


def talk(turns: int) -> Conversation:
    return conversation(*(turn for number in range(turns) for turn in (user(f"q{number}"), assistant(f"a{number}"))))


def encoder(length: int, too_long: OverLong = "drop") -> ChatEncoder:
    tokenizer = byte_level()
    return ChatEncoder(tokenizer, resolve_template("chatml", tokenizer), length=length, too_long=too_long)


def test_as_many_answers_stay_as_fit_each_whole() -> None:
    whole = encoder(length=10_000)
    lengths = {turns: len(whole.encode(talk(turns))) for turns in (1, 2, 3, 5)}
    for turns in (1, 2, 3):
        for spare in (0, 1):
            cut = encoder(length=lengths[turns] + spare, too_long="trim")
            encoded = cut.encode(talk(5))
            assert encoded.input_ids.tolist() == whole.encode(talk(turns)).input_ids.tolist()
            assert encoded.targets.token.tolist() == whole.encode(talk(turns)).targets.token.tolist()
            assert encoded.left_out == 10 - 2 * turns
            assert f"its last turns are left out, {10 - 2 * turns} of 10" in encoded.note
            assert f"{lengths[5]} tokens" in encoded.note


def test_where_the_first_answer_does_not_fit_nothing_is_left() -> None:
    with pytest.raises(TooLong, match="the recipe's length is 10"):
        encoder(length=10, too_long="trim").encode(talk(5))


def test_a_row_that_fits_is_not_touched() -> None:
    encoded = encoder(length=10_000, too_long="trim").encode(talk(3))
    assert (encoded.note, encoded.left_out) == ("", 0)


def test_with_error_the_run_ends_and_names_the_row() -> None:
    with pytest.raises(Unfit, match="too_long to trim, shrink or drop"):
        encoder(length=10, too_long="error").encode_all([talk(1)], [0])


def test_of_a_tree_each_thread_is_cut_by_itself() -> None:
    one, long = Text("x"), Text("y" * 200)
    turns = (
        Turn("user", (one,)),
        Turn("assistant", (one,)),
        Turn("user", (long,)),
        Turn("assistant", (one,)),
        Turn("user", (one,), parent=1),
        Turn("assistant", (one,)),
    )
    encoded = encoder(length=150, too_long="trim").encode(Conversation("r:1", turns))
    short = encoder(length=150).encode(Conversation("r:1", (*turns[:2], *turns[4:])))
    assert encoded.input_ids.tolist() == short.input_ids.tolist()
    assert encoded.left_out == 2


@settings(max_examples=100, deadline=None)
@given(parents=st.lists(st.integers(0, 30), min_size=1, max_size=8), most=st.integers(1, 8))
def test_what_is_left_of_any_tree_are_beginnings_of_its_threads(parents: list[int], most: int) -> None:
    # Pairs of question and answer; each question answers an earlier answer, or begins.
    turns: list[Turn] = []
    for number, parent in enumerate(parents):
        above = ROOT if parent % (number + 1) == number else 2 * (parent % (number + 1)) + 1
        turns += [Turn("user", (Text(f"q{number}"),), parent=above), Turn("assistant", (Text(f"a{number}"),))]
    tree = Conversation("r:1", tuple(turns))
    long = {path: tuple(path[1::2]) for path in tree.threads() if len(path) > 2 * most}
    left = trimmed(tree, long, lambda chain: len(chain.turns) <= 2 * most)
    wanted = {tuple(tree.turns[index].text for index in path[: 2 * most]) for path in tree.threads()}
    found = {tuple(left.turns[index].text for index in path) for path in left.threads()}
    assert found <= wanted
    assert max(map(len, found)) <= 2 * most
    # A beginning that is missing is the beginning of one that is there.
    assert all(any(other[: len(path)] == path for other in found) for path in wanted)
