import re
from dataclasses import replace

import numpy as np
import pytest

from mmsft.data.chat import ChatEncoder
from mmsft.data.fit import TooLong
from mmsft.data.template import ChatTemplate, resolve_template
from mmsft.data.tokens import Tokenizer
from mmsft.data.tree import threads
from mmsft.errors import DataError
from mmsft.types import ROOT, Conversation, Turn
from tests.data.dialogues import CAT, FORGETFUL, assistant, conversation, learned, three_slots, user


@pytest.fixture
def encoder(chatml: Tokenizer) -> ChatEncoder:
    return ChatEncoder(chatml, resolve_template("chatml", chatml), slots=three_slots)


def under(parent: int, turn: Turn) -> Turn:
    return replace(turn, parent=parent)


def alone(tree: Conversation, path: tuple[int, ...]) -> Conversation:
    return Conversation(tree.id, tuple(replace(tree.turns[index], parent=-1) for index in path))


QUESTIONS = conversation(
    user(CAT, "what?"),
    assistant("a cat"),
    user("the end?"),
    assistant("yes"),
    under(1, user("the start?")),
    assistant("no"),
    under(1, user("the start?")),
    assistant("maybe"),
)


def test_each_thread_has_the_tokens_that_it_has_alone(encoder: ChatEncoder) -> None:
    for learn in ("assistant", "completion", "all"):
        by = replace(encoder, learn=learn)
        for path, thread in zip(QUESTIONS.threads(), threads(by.encode(QUESTIONS)), strict=True):
            single = by.encode(alone(QUESTIONS, path))
            assert thread.input_ids.tolist() == single.input_ids.tolist()
            assert [p.slots.tolist() for p in thread.media] == [p.slots.tolist() for p in single.media]


def test_each_turn_is_learned_once_in_its_first_thread(encoder: ChatEncoder) -> None:
    said = [learned(encoder, thread) for thread in threads(encoder.encode(QUESTIONS))]
    assert said == ["a cat<|im_end|>yes<|im_end|>", "no<|im_end|>", "maybe<|im_end|>"]


def test_a_shared_picture_stands_once(encoder: ChatEncoder) -> None:
    encoded = encoder.encode(QUESTIONS)
    assert len(encoded.media) == 1
    assert len(encoded) < sum(len(encoder.encode(alone(QUESTIONS, path))) for path in QUESTIONS.threads()) / 2


def test_answers_that_begin_alike_are_each_learned_whole(encoder: ChatEncoder) -> None:
    ranked = conversation(user("q"), assistant("the end"), under(0, assistant("the rest", weight=0.5)))
    encoded = encoder.encode(ranked)
    both = [len(encoder.tokenizer.reply(reply)) + 1 for reply in ("the end", "the rest")]
    assert encoded.targets.weight.tolist() == [1.0] * both[0] + [0.5] * both[1]
    # The branch point has a target for each way on.
    assert len(set(encoded.targets.position.tolist())) < len(encoded.targets)


def test_all_learns_what_threads_share_once(encoder: ChatEncoder) -> None:
    encoded = replace(encoder, learn="all").encode(QUESTIONS)
    slots = encoded.media[0].slots
    assert len(encoded.targets) == len(encoded) - 1 - len(slots)
    # No position and token twice: only the three ways on from a branch point share a position.
    pairs = np.stack([encoded.targets.position, encoded.targets.token])
    assert len(np.unique(pairs, axis=1).T) == len(encoded.targets)


def test_threads_may_share_nothing(encoder: ChatEncoder) -> None:
    apart = conversation(user("a"), assistant("b"), under(ROOT, user("c")), assistant("d"))
    assert [learned(encoder, t) for t in threads(encoder.encode(apart))] == ["b<|im_end|>", "d<|im_end|>"]


def test_a_prompt_is_one_thread(encoder: ChatEncoder) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:7: 3 threads"):
        encoder.prompt(QUESTIONS)


LONG = "?" * 200


def too_long(*turns: Turn) -> Conversation:
    """Four threads, of which the first is too long, and a learned turn that two of them share."""
    return conversation(user("a"), assistant("b"), user(LONG), assistant("c"), under(1, user("d")), *turns)


def test_a_thread_that_is_too_long_takes_no_other_along(encoder: ChatEncoder) -> None:
    short = replace(encoder, length=120)
    encoded = short.encode(too_long(assistant("e"), under(4, assistant("f"))))
    assert [learned(encoder, thread) for thread in threads(encoded)] == ["b<|im_end|>e<|im_end|>", "f<|im_end|>"]
    assert encoded.left_out == 1
    assert re.match(r"1 of 3 threads too long.*rows\.jsonl:7: \d+ tokens; the recipe's length is 120", encoded.note)
    assert "too long" not in encoder.encode(too_long(assistant("e"))).note


def test_all_that_threads_share_is_learned_where_the_first_of_them_is_too_long(encoder: ChatEncoder) -> None:
    everything = replace(encoder, length=120, learn="all")
    encoded = everything.encode(too_long(assistant("e")))
    alone = everything.encode(conversation(user("a"), assistant("b"), user("d"), assistant("e")))
    assert encoded.input_ids.tolist() == alone.input_ids.tolist()
    assert encoded.targets.position.tolist() == alone.targets.position.tolist()


def test_a_turn_whose_other_thread_said_nothing_new_is_learned_there_now(encoder: ChatEncoder) -> None:
    # The second thread ends with a user's turn: while the first is there, it isn't written at all.
    asked = conversation(user("a"), assistant("b"), user(LONG), assistant("c"), under(1, user("d")))
    assert learned(encoder, replace(encoder, length=120).encode(asked)) == "b<|im_end|>"


def test_a_row_of_which_each_thread_is_too_long_is_dropped(encoder: ChatEncoder) -> None:
    hopeless = conversation(user(LONG), assistant("b"), under(0, assistant("c")))
    with pytest.raises(TooLong, match=r"rows\.jsonl:7: \d+ tokens; the recipe's length is 120"):
        replace(encoder, length=120).encode(hopeless)


def test_of_turns_that_run_as_threads_the_short_ones_stay(encoder: ChatEncoder) -> None:
    forgetful = ChatTemplate("mine.jinja", FORGETFUL)
    talk = conversation(user("a"), assistant("b"), user("c"), assistant("d"), user(LONG), assistant("e"))
    encoded = replace(encoder, template=forgetful, length=150).encode(talk)
    said = [learned(encoder, thread) for thread in threads(encoded)]
    assert said == ["<think></think>b<|im_end|>", "<think></think>d<|im_end|>"]
    assert re.search(r"thread of its own; 1 of 3 threads too long", encoded.note)
