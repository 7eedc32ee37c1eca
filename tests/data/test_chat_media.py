from dataclasses import replace

import pytest

from mmsft.data.chat import ChatEncoder
from mmsft.data.template import ChatTemplate, resolve_template
from mmsft.data.tokens import Tokenizer
from mmsft.errors import DataError
from mmsft.types import Media
from tests.data.conftest import sentence_piece
from tests.data.dialogues import (
    CAT,
    DOG,
    assistant,
    controls,
    conversation,
    dialogue,
    framed,
    learned,
    three_slots,
    user,
    written,
)


@pytest.fixture
def encoder(chatml: Tokenizer) -> ChatEncoder:
    return ChatEncoder(chatml, resolve_template("chatml", chatml), slots=three_slots)


def test_media_stand_where_they_are_said(encoder: ChatEncoder) -> None:
    encoded = encoder.encode(conversation(user("a", CAT, "b", DOG), assistant("c"), user(CAT), assistant("d")))
    assert [placed.media for placed in encoded.media] == [CAT, DOG, CAT]
    ids = encoded.input_ids.tolist()
    for placed, before in zip(encoded.media, ("a", "b", "user\n"), strict=True):
        first = int(placed.slots[0])
        assert placed.slots.tolist() == [first, first + 1, first + 2]
        assert encoder.tokenizer.decode(ids[:first]).endswith(before)
    assert learned(encoder, encoded) == "c<|im_end|>d<|im_end|>"


def test_a_layout_may_put_text_among_the_slots(encoder: ChatEncoder) -> None:
    encoded = replace(encoder, slots=framed).encode(conversation(user(CAT), assistant("b")))
    (placed,) = encoded.media
    assert len(placed.slots) == 4
    text = encoder.tokenizer.decode([i for n, i in enumerate(encoded.input_ids) if n not in placed.slots])
    assert "user\n0s<|im_end|>1s<|im_end|>" in text
    assert controls(encoder.tokenizer, encoded) == ["<|im_start|>", "<|im_end|>", "<|im_start|>", "<|im_end|>"]


def test_slots_are_never_targets_but_the_token_after_them_is(encoder: ChatEncoder) -> None:
    for learn in ("assistant", "all"):
        encoded = replace(encoder, learn=learn).encode(conversation(user(DOG), assistant("a", CAT, "b")))
        learned_at = set((encoded.targets.position + 1).tolist())
        for placed in encoded.media:
            assert learned_at.isdisjoint(placed.slots.tolist())
        assert int(encoded.media[-1].slots[-1]) + 1 in learned_at


def test_a_medium_that_the_template_loses_or_repeats_is_an_error(encoder: ChatEncoder) -> None:
    talk = conversation(user(CAT, "a"), assistant("b"))
    for change, count in (("message.content[1:]", 0), ("message.content + message.content", 2)):
        source = encoder.template.source.replace("message.content", change)
        with pytest.raises(DataError, match=rf"'mine' writes <image: cat.png> of turn 0 {count} times"):
            replace(encoder, template=ChatTemplate("mine", source)).encode(talk)


def test_media_without_a_tower_are_an_error(chatml: Tokenizer) -> None:
    encoder = ChatEncoder(chatml, resolve_template("chatml", chatml))
    with pytest.raises(DataError, match=r"<image: cat\.png>: the model has no tower 'image'"):
        encoder.encode(conversation(user(CAT), assistant("b")))


def test_llava_s_first_stage_is_the_picture_and_its_caption(encoder: ChatEncoder) -> None:
    plain = replace(encoder, template=resolve_template("plain", encoder.tokenizer))
    encoded = plain.encode(conversation(user("Describe it.\n", CAT), assistant("a cat")))
    assert encoded.media[0].slots.tolist() == [0, 1, 2]
    assert encoder.tokenizer.decode(encoded.input_ids[3:].tolist()) == "a cat\n" == learned(plain, encoded)
    assert encoded.targets.position[0] == 2


def test_text_behind_a_picture_is_tokenised_as_behind_a_placeholder_token() -> None:
    tokenizer = sentence_piece(legacy=True)
    encoder = ChatEncoder(tokenizer, resolve_template("vicuna", tokenizer), slots=three_slots)
    ids = encoder.prompt(conversation(user(CAT, "\nwhat?"))).input_ids.tolist()
    placeholder = tokenizer.hf.convert_tokens_to_ids("<s>")
    text = written(encoder, conversation(user("<s>\nwhat?"))) + "ASSISTANT:"
    expected = [0 if id == placeholder else id for id in tokenizer.text(text)]
    assert [id for id in ids if id] == [id for id in expected if id]


def test_media_make_no_difference_to_text_rows(encoder: ChatEncoder) -> None:
    def none(media: Media) -> tuple[()]:
        return ()

    assert (
        encoder.encode(dialogue(2)).input_ids.tolist()
        == replace(encoder, slots=none).encode(dialogue(2)).input_ids.tolist()
    )
