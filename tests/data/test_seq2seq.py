from dataclasses import replace

import pytest

from mmsft.data import tree
from mmsft.data.collate import collate
from mmsft.data.encoding import Encoding
from mmsft.data.media_reader import MediaReader
from mmsft.data.template import resolve_template
from mmsft.errors import ConfigError, DataError
from mmsft.types import Batch, Conversation, Encoded, Segment, Text, Turn
from tests.data.dialogues import CAT, assistant, conversation, user
from tests.model.seq2seq import EOS, FAMILIES, encoder, talk, tokenizer

NO_TOWERS = MediaReader({})


def sides(encoded: Encoded) -> list[tuple[list[int], list[int]]]:
    """Returns the ids of each prompt and reply."""
    threads = [(thread.segments[1].start, thread.input_ids.tolist()) for thread in tree.threads(encoded)]
    return [(ids[:reply], ids[reply:]) for reply, ids in threads]


def batch_sides(batch: Batch) -> list[tuple[list[int], list[int]]]:
    """Returns the ids of each prompt and reply in a batch, without padding."""
    assert batch.prompts
    return [
        (batch.prompts.input_ids[of][batch.prompts.mask[of]].tolist(), ids[mask].tolist())
        for of, ids, mask in zip(batch.prompts.of, batch.input_ids, batch.mask, strict=True)
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_both_sides_are_what_the_tokenizer_makes_of_them(family: str) -> None:
    hf = tokenizer(family)
    encoded = encoder(family).encode(talk("Is this the end?", "this is"))
    (prompt, reply), start = sides(encoded)[0], encoder(family).sides
    assert start is not None
    assert prompt == hf("Is this the end?")["input_ids"]
    labels = hf(text_target="this is")["input_ids"]
    assert reply == [start.start, *labels]
    assert encoded.targets.token.tolist() == labels
    assert encoded.targets.position.tolist() == [len(prompt) + index for index in range(len(labels))]
    assert encoded.positions.tolist() == [*range(len(prompt)), *range(len(reply))]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_ends_where_its_reply_would_be_written(family: str) -> None:
    made = encoder(family)
    asked = made.prompt(conversation(user("this is")))
    (prompt, begun), (learned_from, reply) = sides(asked)[0], sides(made.encode(talk("this is", "the")))[0]
    assert prompt == learned_from
    assert begun == reply[: 2 if family == "bart" else 1]
    assert made.stop_ids == (tokenizer(family).eos_token_id,)


def test_what_the_template_puts_around_a_text_is_not_doubled() -> None:
    made = encoder("bart")
    closed = replace(made, template=resolve_template("alpaca", made.tokenizer))
    prompt, reply = sides(closed.encode(talk("this", "the")))[0]
    for ids in (prompt, reply[1:]):
        assert ids.count(made.tokenizer.hf.bos_token_id) == ids.count(made.tokenizer.hf.eos_token_id) == 1


def test_every_learned_turn_of_a_dialogue_is_a_reply_to_all_that_was_said_before() -> None:
    made = encoder("t5")
    encoded = made.encode(conversation(user("a"), assistant("b"), user("c"), assistant("d")))
    said = [tuple(map(made.tokenizer.decode, pair)) for pair in sides(encoded)]
    assert said == [(f"a{EOS}", f"<pad>b{EOS}"), (f"ab\nc{EOS}", f"<pad>d{EOS}")]
    completion = replace(made, learn="completion")
    assert len(sides(completion.encode(conversation(user("a"), assistant("b"), user("c"), assistant("d"))))) == 1


def test_replies_share_a_whole_prompt_and_never_a_part_of_one() -> None:
    made = encoder("t5")
    rows = [made.encode(talk(*texts)) for texts in (("this is", "the"), ("this isn't", "a"), ("this is", "an"))]
    joined = tree.join([thread for row in rows for thread in tree.threads(row)])
    prompts = [segment for segment in joined.segments if segment.parent < 0]
    assert [segment.end - segment.start for segment in prompts] == [len(sides(row)[0][0]) for row in rows[:2]]
    assert sorted(sides(joined)) == sorted(pair for row in rows for pair in sides(row))
    assert sides(made.encode(talk("this is", "the", "an"))) == sides(rows[0]) + sides(rows[2])


def test_equal_replies_to_one_prompt_all_count() -> None:
    made = encoder("t5")
    row = made.encode(talk("this is", "the"))
    joined = tree.join([row, row])
    assert len(joined.targets) == 2 * len(row.targets)
    assert collate([joined], NO_TOWERS, {}).input_ids.shape == (2, len(sides(row)[0][1]))


def test_a_batch_holds_each_prompt_once() -> None:
    made = encoder("t5")
    rows = [made.encode(talk("this is it", "the", "a then")), made.encode(talk("why", "an"))]
    batch = collate(rows, NO_TOWERS, {})
    assert batch.prompts is not None
    assert batch.prompts.of.tolist() == [0, 0, 1]
    assert (len(batch.prompts.input_ids), len(batch.input_ids)) == (2, 3)
    assert batch_sides(batch) == [pair for row in rows for pair in sides(row)]
    following = batch.input_ids.flatten()[batch.targets.at + 1]
    assert following.tolist() == batch.targets.token.tolist()


@pytest.mark.parametrize("most", [20, 40, 90])
def test_micro_batches_hold_every_target_within_their_size(most: int) -> None:
    made = encoder("t5")
    rows = [
        made.encode(talk("x" * length, *("y" * (1 + (length + index) % 5) for index in range(replies))))
        for length, replies in ((1, 1), (12, 7), (3, 2), (9, 1))
    ]
    rows.append(made.encode(conversation(user("a"), assistant("b"), user("c" * 9), assistant("d"))))
    batches = list(Encoding(made, NO_TOWERS, most).batches(rows, {}))
    assert all(batch.prompts is not None for batch in batches)
    sizes = [batch.input_ids.numel() + batch.prompts.input_ids.numel() for batch in batches if batch.prompts]
    assert max(sizes) <= most
    assert sorted(pair for batch in batches for pair in batch_sides(batch)) == sorted(
        pair for row in rows for pair in sides(row)
    )
    if most == 90:
        assert sum(len(batch.prompts.input_ids) for batch in batches if batch.prompts) == 6  # each prompt once


def test_only_what_follows_the_marker_of_a_span_is_learned() -> None:
    made = encoder("t5", learn="span")
    encoded = made.encode(talk("a", "this is <answer>the"))
    assert made.tokenizer.decode(encoded.targets.token.tolist()) == f"the{EOS}"
    assert made.tokenizer.decode(sides(encoded)[0][1]) == f"<pad>this is <answer>the{EOS}"


def test_a_turns_weight_is_that_of_all_it_says() -> None:
    made = encoder("bart")
    row = Conversation("r:1", (Turn("user", (Text("a"),)), Turn("assistant", (Text("b"),), weight=0.5)))
    assert made.encode(row).targets.weight.tolist() == [0.5] * 3  # <s> b </s>


def test_media_lie_in_prompts() -> None:
    encoded = encoder("t5").encode(conversation(user(CAT), assistant("b")))
    (placed,) = encoded.media
    assert encoded.segments[0] == Segment(0, 4)
    assert placed.slots.tolist() == [0, 1, 2]
    with pytest.raises(DataError, match=r"an assistant's turn has .*cat.* encoder-decoder writes text alone"):
        encoder("t5").encode(conversation(user("a"), assistant(CAT)))


def test_prompts_cannot_be_learned() -> None:
    with pytest.raises(ConfigError, match="learn: all learns prompts too"):
        encoder("t5", learn="all")


def test_a_turn_that_branches_share_is_learned_once() -> None:
    made = encoder("t5")
    turns = (user("a"), assistant("b"), replace(user("c"), parent=1), assistant("d"), replace(user("e"), parent=1))
    encoded = made.encode(conversation(*turns, assistant("f")))
    assert [made.tokenizer.decode(reply) for _, reply in sides(encoded)] == [f"<pad>{said}{EOS}" for said in "bdf"]
