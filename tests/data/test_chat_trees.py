from dataclasses import replace

import numpy as np
import pytest

from mmsft.data.chat import ChatEncoder
from mmsft.data.template import resolve_template
from mmsft.data.tokens import Tokenizer
from mmsft.data.tree import threads
from mmsft.errors import DataError
from mmsft.types import ROOT, Conversation, Turn
from tests.data.dialogues import CAT, assistant, conversation, learned, three_slots, user


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
