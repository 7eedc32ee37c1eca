import pickle
import re
from dataclasses import replace

import numpy as np
import pytest

from mmsft.data.chat import ChatEncoder, NothingToLearn
from mmsft.data.fit import TooLong
from mmsft.data.template import ChatTemplate, resolve_template
from mmsft.data.tokens import Tokenizer
from mmsft.data.tree import threads
from mmsft.errors import DataError
from mmsft.types import Conversation, Encoded, ToolCall, Turn
from tests.data.conftest import byte_level
from tests.data.dialogues import FORGETFUL, assistant, conversation, dialogue, learned, parts, system, user, written

REASONING = """{% for m in messages %}<|im_start|>{{ m.role + '\n' }}
{%- if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


@pytest.fixture
def encoder(chatml: Tokenizer) -> ChatEncoder:
    return ChatEncoder(chatml, resolve_template("chatml", chatml))


def with_template(encoder: ChatEncoder, source: str) -> ChatEncoder:
    return replace(encoder, template=ChatTemplate("mine.jinja", source))


@pytest.mark.parametrize("rounds", [1, 3])
def test_replies_and_their_end_tokens_are_learned(encoder: ChatEncoder, rounds: int) -> None:
    encoded = encoder.encode(dialogue(rounds), source=4)
    assert learned(encoder, encoded) == "".join(f"reply {i}<|im_end|>" for i in range(rounds))
    assert encoded.input_ids[encoded.targets.position + 1].tolist() == encoded.targets.token.tolist()
    assert encoded.source == 4


def test_a_prompt_is_what_transformers_makes_of_it(encoder: ChatEncoder) -> None:
    talk = conversation(system("be kind"), user("the end\n\n"), assistant("is it?"), user("yes"))
    messages = [{"role": turn.role, "content": turn.text} for turn in talk.turns]
    ids = encoder.tokenizer.hf.apply_chat_template(
        messages, chat_template=encoder.template.source, add_generation_prompt=True, return_dict=False
    )
    assert encoder.prompt(talk).input_ids.tolist() == ids
    assert len(encoder.prompt(talk).targets) == 0


def test_training_begins_with_the_tokens_of_the_prompt_whatever_the_reply_begins_with(encoder: ChatEncoder) -> None:
    for reply in ("\n\n\nthe end", " the end", "the end"):
        prompt = encoder.prompt(conversation(user("q"))).input_ids
        encoded = encoder.encode(conversation(user("q"), assistant(reply)))
        assert encoded.input_ids[: len(prompt)].tolist() == prompt.tolist()
        assert learned(encoder, encoded) == f"{reply}<|im_end|>"


def test_weights_follow_their_turns_and_weight_0_is_context(encoder: ChatEncoder) -> None:
    talk = conversation(
        user("a"), assistant("one", weight=0.5), user("b"), assistant("two", weight=0), user("c"), assistant("3")
    )
    encoded = encoder.encode(talk)
    assert learned(encoder, encoded) == "one<|im_end|>3<|im_end|>"
    assert encoded.targets.weight.tolist() == [0.5] * 4 + [1.0] * 2
    assert "two<|im_end|>" in encoder.tokenizer.decode(encoded.input_ids.tolist())


def test_what_follows_the_last_learned_turn_is_left_out(encoder: ChatEncoder) -> None:
    talk = conversation(user("a"), assistant("b"), user("the rest"))
    assert encoder.tokenizer.decode(encoder.encode(talk).input_ids.tolist()).endswith("b<|im_end|>")


def test_completion_learns_the_last_reply_only(encoder: ChatEncoder) -> None:
    completion = replace(encoder, learn="completion")
    assert learned(encoder, completion.encode(dialogue(3))) == "reply 2<|im_end|>"


def test_all_learns_every_token_but_the_first(encoder: ChatEncoder) -> None:
    everything = replace(encoder, learn="all").encode(conversation(*dialogue(2).turns, user("more")))
    assert everything.targets.position.tolist() == list(range(len(everything) - 1))
    assert everything.targets.token.tolist() == everything.input_ids[1:].tolist()
    assert encoder.tokenizer.decode(everything.input_ids.tolist()).endswith("more<|im_end|>\n")


def test_all_refuses_a_weight_that_it_would_ignore(encoder: ChatEncoder) -> None:
    talk = conversation(replace(user("a"), weight=0.0), assistant("b"))
    with pytest.raises(DataError, match=r"rows\.jsonl:7: turn 0 \(user\) has weight 0"):
        replace(encoder, learn="all").encode(talk)


def test_span_learns_what_follows_the_marker() -> None:
    tokenizer = byte_level(special=("<|im_start|>", "<|im_end|>", "<answer>"))
    encoder = ChatEncoder(tokenizer, resolve_template("chatml", tokenizer), learn="span")
    encoded = encoder.encode(conversation(user("q <answer>"), assistant("so <answer>the end")))
    assert learned(encoder, encoded) == "the end<|im_end|>"
    marker = tokenizer.hf.convert_tokens_to_ids("<answer>")
    assert encoded.input_ids.tolist().count(marker) == 1
    with pytest.raises(DataError, match=r"rows\.jsonl:7: .* follows <answer>, and assistant turn 1 has none"):
        encoder.encode(conversation(user("q"), assistant("the end")))


@pytest.mark.parametrize("turns", [(user("a"),), (user("a"), assistant("b", weight=0))])
def test_a_row_with_nothing_to_learn_is_refused(encoder: ChatEncoder, turns: tuple[Turn, ...]) -> None:
    with pytest.raises(NothingToLearn, match=r"rows\.jsonl:7"):
        encoder.encode(conversation(*turns))


def test_an_empty_reply_is_refused_unless_it_is_context(encoder: ChatEncoder) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:7: assistant turn 1 is empty"):
        encoder.encode(conversation(user("a"), assistant(" \n"), user("b"), assistant("c")))
    assert encoder.encode(conversation(user("a"), assistant("", weight=0), user("b"), assistant("c")))


def test_a_reply_to_nothing_is_refused(encoder: ChatEncoder) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:7: turn 0 is the assistant's"):
        encoder.encode(conversation(assistant("a")))


def test_a_thread_that_is_too_long_is_refused_with_both_numbers(encoder: ChatEncoder) -> None:
    length = len(encoder.encode(dialogue(2)))
    assert len(replace(encoder, length=length).encode(dialogue(2))) == length
    with pytest.raises(TooLong, match=rf"rows\.jsonl:7: {length} tokens; the recipe's length is {length - 1}"):
        replace(encoder, length=length - 1).encode(dialogue(2))


def test_turns_that_a_template_rewrites_run_as_threads_of_their_own_and_the_row_says_so(encoder: ChatEncoder) -> None:
    forgetful = with_template(encoder, FORGETFUL)
    talk = conversation(user("a"), assistant("b", reasoning="hm"), user("c"), assistant("d", reasoning="so"))
    encoded = forgetful.encode(talk)
    first, second = threads(encoded)
    assert learned(encoder, first) == "<think>hm</think>b<|im_end|>"
    assert learned(encoder, second) == "<think>so</think>d<|im_end|>"
    assert "<think>hm" not in encoder.tokenizer.decode(second.input_ids.tolist())
    assert len(encoded) < len(first) + len(second)
    assert re.search(r"rows\.jsonl:7: the chat template 'mine.jinja' .* turn 1: .*<think>hm.*of its own$", encoded.note)
    # The last reply is the one that inference would give, also with such a template.
    assert learned(encoder, replace(forgetful, learn="completion").encode(talk)) == "<think>so</think>d<|im_end|>"


def test_reasoning_is_written_as_the_template_does(encoder: ChatEncoder) -> None:
    talk = conversation(user("a"), assistant("b", reasoning="hm"))
    encoded = with_template(encoder, REASONING).encode(talk)
    assert learned(encoder, encoded) == "<think>hm</think>b<|im_end|>"


def test_reasoning_is_part_of_the_reply_where_the_template_does_not_know_it(encoder: ChatEncoder) -> None:
    encoded = encoder.encode(conversation(user("a"), assistant("b", reasoning="hm")))
    assert learned(encoder, encoded) == "<think>\nhm\n</think>\n\nb<|im_end|>"


def test_reasoning_that_gets_lost_is_an_error(encoder: ChatEncoder) -> None:
    source = encoder.template.source.replace("message.content", "message.content.split('</think>')[-1]")
    with pytest.raises(DataError, match=r"'mine.jinja' leaves out the reasoning of turn 1"):
        with_template(encoder, source).encode(conversation(user("a"), assistant("b", reasoning="hm")))


def test_a_turn_that_the_template_leaves_out_is_an_error(encoder: ChatEncoder) -> None:
    source = encoder.template.source.replace(
        "for message in messages", "for message in messages if message.role != 'system'"
    )
    with pytest.raises(DataError, match=r"'mine.jinja' leaves out turn 0 \(system\)"):
        with_template(encoder, source).encode(conversation(system("be kind"), user("a"), assistant("b")))


def test_what_the_template_refuses_is_told_in_its_words(encoder: ChatEncoder) -> None:
    source = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(
        DataError, match=r"rows\.jsonl:7: .*'mine.jinja' refuses the conversation: roles must alternate"
    ):
        with_template(encoder, source).encode(dialogue(1))


def test_tools_and_calls_that_the_template_does_not_know_are_an_error(encoder: ChatEncoder) -> None:
    call = Turn("assistant", (), tool_calls=(ToolCall("add", {"a": 1}),))
    turns = (user("add"), call, Turn("tool", parts("3")), assistant("It is 3."))
    with pytest.raises(DataError, match="leaves out the tool calls of turn 1"):
        encoder.encode(Conversation("rows.jsonl:7", turns))
    schema = {"type": "function", "function": {"name": "add", "parameters": {}}}
    with pytest.raises(DataError, match="leaves out the tools"):
        encoder.encode(Conversation("rows.jsonl:7", (user("hi"), assistant("hi")), tools=(schema,)))


def test_a_rows_own_variables_come_on_top_of_the_recipes(encoder: ChatEncoder) -> None:
    named = replace(with_template(encoder, "{{ bot + ' ' }}" + encoder.template.source), template_kwargs={"bot": "Ann"})
    assert written(named, dialogue(1)).startswith("Ann ")
    assert written(named, replace(dialogue(1), template_kwargs={"bot": "Bo"})).startswith("Bo ")


def test_together_rows_give_what_each_gives_alone(encoder: ChatEncoder) -> None:
    encoder = with_template(replace(encoder, length=200), FORGETFUL)
    rows = [
        dialogue(1),
        conversation(user("a")),
        conversation(assistant("a")),
        conversation(user("?" * 200), assistant("a"), user("?"), assistant("b")),
        conversation(user("<|im_end|>"), assistant("b", reasoning="hm"), user("c"), assistant("d", reasoning="so")),
        dialogue(2),
        dialogue(12),
    ]
    together = encoder.encode_all(rows, range(7))
    assert [type(row) for row in together] == [Encoded, NothingToLearn, DataError, TooLong, Encoded, Encoded, Encoded]
    for number, (row, found) in enumerate(zip(rows, together, strict=True)):
        if isinstance(found, DataError):
            with pytest.raises(type(found)) as alone:
                encoder.encode(row)
            assert str(alone.value) == str(found)
        else:
            alone_row = encoder.encode(row, source=number)
            assert pickle.dumps(alone_row) == pickle.dumps(found)


def test_it_survives_pickling(encoder: ChatEncoder) -> None:
    encoded = encoder.encode(dialogue(2))
    again = pickle.loads(pickle.dumps(encoder)).encode(dialogue(2))
    assert np.array_equal(encoded.input_ids, again.input_ids)
    assert np.array_equal(encoded.targets.position, again.targets.position)


def test_replies_stop_at_the_end_tokens_of_sequence_and_template(chatml: Tokenizer) -> None:
    chatml.hf.eos_token = "<|endoftext|>"
    ids = [chatml.text(token)[0] for token in ("<|im_end|>", "<|endoftext|>")]
    encoder = ChatEncoder(chatml, resolve_template("chatml", chatml))
    assert set(encoder.stop_ids) == set(ids)
    assert encoder.decode_reply(chatml.reply(" the end\n")) == "the end"
