"""What is asked about a medium goes with it, for adapters that read it: the same in training and for inference."""

import pickle
from dataclasses import replace

import pytest

from mmsft.data.chat import ChatEncoder, Learn
from mmsft.data.template import ChatTemplate, resolve_template
from mmsft.data.tokens import Tokenizer
from mmsft.data.tree import join, threads
from mmsft.errors import ConfigError, DataError
from mmsft.types import Conversation, Encoded, Turn
from tests.data.dialogues import CAT, DOG, assistant, conversation, parts, system, three_slots, user


def letters(text: str) -> tuple[int, ...]:
    return tuple(map(ord, text))


@pytest.fixture
def encoder(chatml: Tokenizer) -> ChatEncoder:
    template = resolve_template("chatml", chatml)
    return ChatEncoder(chatml, template, slots=three_slots, contexts={"image": letters})


def asked(encoded: Encoded) -> list[str]:
    return ["".join(map(chr, placed.context)) for placed in encoded.media]


def test_it_is_the_text_of_the_turn_in_which_the_medium_stands(encoder: ChatEncoder) -> None:
    talk = conversation(
        system("Be short."),
        user(CAT, "\nWhat is ", DOG, "it? "),
        assistant("a"),
        user("And this?", CAT),
        assistant("b"),
    )
    encoded = encoder.encode(talk)
    assert [placed.media for placed in encoded.media] == [CAT, DOG, CAT]
    assert asked(encoded) == ["What is it?", "What is it?", "And this?"]


def test_inference_reads_what_training_reads(encoder: ChatEncoder) -> None:
    talk = conversation(user(CAT, "What?"), assistant("a"), user(DOG, "Why?"), assistant("b"))
    prompt = encoder.prompt(replace(talk, turns=talk.turns[:3]))
    assert asked(prompt) == asked(encoder.encode(talk)) == ["What?", "Why?"]


def test_an_adapter_that_reads_nothing_has_no_context(encoder: ChatEncoder) -> None:
    other = replace(encoder, contexts={"sound": letters})
    assert asked(other.encode(conversation(user(CAT, "What?"), assistant("a")))) == [""]


def test_what_a_template_leaves_out_is_read_all_the_same(encoder: ChatEncoder) -> None:
    plain = ChatTemplate("bare", "{% for m in messages %}{{ m.media or m.content }}\n{% endfor %}")
    encoded = replace(encoder, template=plain).encode(conversation(user(CAT, "Describe it."), assistant("A cat.")))
    assert asked(encoded) == ["Describe it."]
    assert "Describe" not in encoder.tokenizer.decode(encoded.input_ids.tolist())


def test_branches_with_other_questions_part_before_the_medium_and_those_with_one_share_it(encoder: ChatEncoder) -> None:
    turns = (
        *(Turn("user", parts(CAT, "What?"), parent=-2), Turn("assistant", parts("a"), parent=0)),
        *(Turn("assistant", parts("b"), parent=0), Turn("user", parts(CAT, "Why?"), parent=-2)),
        Turn("assistant", parts("c"), parent=3),
    )
    encoded = encoder.encode(Conversation("rows.jsonl:7", turns))
    assert asked(encoded) == ["What?", "Why?"]
    assert [asked(thread) for thread in threads(encoded)] == [["What?"], ["What?"], ["Why?"]]
    assert asked(join(threads(encoded))) == asked(encoded)


def test_a_medium_in_an_assistants_turn_is_refused_since_its_adapter_would_read_the_answer(
    encoder: ChatEncoder,
) -> None:
    talk = conversation(user("Draw."), assistant("Here: ", CAT))
    with pytest.raises(DataError, match=r"<image: cat.png> stands in an assistant's turn, and its adapter would read"):
        encoder.encode(talk)
    assert replace(encoder, contexts={}).encode(talk).media


@pytest.mark.parametrize("learn", ["assistant", "completion", "span", "all"])
def test_prompts_that_are_learned_are_refused_since_an_adapter_would_read_them_first(
    encoder: ChatEncoder, learn: Learn
) -> None:
    if learn != "all":
        replace(encoder, learn=learn)
        return
    with pytest.raises(ConfigError, match=r"learn: all learns prompts too, which the adapter of towers\.image reads"):
        replace(encoder, learn=learn)


def test_a_tokenizer_that_can_not_be_loaded_is_said_before_any_row(encoder: ChatEncoder) -> None:
    def missing(text: str) -> tuple[int, ...]:
        raise ConfigError("no such tokenizer")

    with pytest.raises(ConfigError, match="no such tokenizer"):
        replace(encoder, contexts={"image": missing})


def test_encoders_with_contexts_go_to_data_workers(encoder: ChatEncoder) -> None:
    again = pickle.loads(pickle.dumps(encoder))
    assert asked(again.encode(conversation(user(CAT, "What?"), assistant("a")))) == ["What?"]
