from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers

from mmsft.data.chat import ChatEncoder
from mmsft.data.template import ChatTemplate, resolve_template
from mmsft.data.tokens import Tokenizer
from mmsft.types import Conversation, Text, ToolCall, Turn
from tests.data.conftest import byte_level, sentence_piece
from tests.data.dialogues import CAT, assistant, controls, conversation, learned, parts, system, three_slots, user

BYTES = byte_level(special=("<|im_start|>", "<|im_end|>", "<image>"), ordinary=("<think>", "</think>"))
PIECES = sentence_piece(legacy=True)
ENCODERS = [
    ChatEncoder(BYTES, resolve_template("chatml", BYTES), slots=three_slots),
    ChatEncoder(PIECES, resolve_template("vicuna", PIECES), slots=three_slots),
]
# Control tokens whole and in halves, and the characters that stand for literals and media while a row is rendered.
TYPED = st.lists(
    st.sampled_from(
        [
            *BYTES.added,
            *PIECES.added,
            "<|im_",
            "end|>",
            "</",
            "s>",
            " ",
            "x",
            "é",
            "\n",
            "\U000f0000",
            "\U00100000",
            "\U0010fffd",
        ]
    ),
    max_size=6,
).map("".join)
TOOLS = """{% for tool in tools %}{{ tool | tojson }}{% endfor %}{% for m in messages %}<|im_start|>{{ m.role + '\n' }}
{%- for call in m.tool_calls %}{{ call.function | tojson }}{% endfor %}{{ m.name }}{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


@given(TYPED, TYPED, TYPED)
def test_nothing_typed_becomes_a_control_token(one: str, two: str, three: str) -> None:
    for encoder in ENCODERS:
        plain = encoder.encode(conversation(system("x"), user("x", CAT, "x"), assistant("x")))
        typed = encoder.encode(conversation(system("x" + one), user("x" + two, CAT, three), assistant("x")))
        assert controls(encoder.tokenizer, typed) == controls(encoder.tokenizer, plain)
        assert len(typed.media) == 1


@given(TYPED, TYPED)
def test_what_is_typed_stays_as_it_is(one: str, two: str) -> None:
    for encoder in ENCODERS:
        encoded = encoder.encode(conversation(user("x" + one + "x"), assistant("x" + two + "x")))
        text = encoder.tokenizer.decode(encoded.input_ids.tolist())
        assert "x" + one + "x" in text
        assert "x" + two + "x" in learned(encoder, encoded)


def test_halves_in_neighbouring_parts_are_seen() -> None:
    encoder = ENCODERS[0]
    split = Turn("user", (Text("<|im_"), Text("end|>")))
    whole = encoder.encode(conversation(user("x"), assistant("x")))
    assert controls(BYTES, encoder.encode(conversation(split, assistant("x")))) == controls(BYTES, whole)


def test_an_assistant_may_think_but_not_end_its_turn() -> None:
    encoder = ENCODERS[0]
    encoded = encoder.encode(conversation(user("<think>"), assistant("<think>a</think>b<|im_end|>c")))
    marks = ["<|im_start|>", "<|im_end|>", "<|im_start|>", "<think>", "</think>", "<|im_end|>"]
    assert controls(BYTES, encoded) == marks
    assert learned(encoder, encoded) == "<think>a</think>b<|im_end|>c<|im_end|>"


@pytest.mark.parametrize("typed", ["<|im_end|>", "<image>", "\U000f0000"])
def test_tools_calls_and_results_inject_nothing(typed: str) -> None:
    encoder = replace(ENCODERS[0], template=ChatTemplate("tools", TOOLS))

    def encoded(word: str) -> list[str]:
        schema = {"type": "function", "function": {"name": word, "parameters": {word: {"description": word}}}}
        call = Turn("assistant", (), tool_calls=(ToolCall(word, {word: [word]}),))
        turns = (user("x"), call, Turn("tool", parts(word), name=word), assistant("x"))
        row = encoder.encode(Conversation("r:1", turns, tools=(schema,)))
        assert encoder.tokenizer.decode(row.input_ids.tolist()).count(word) >= 7
        return controls(BYTES, row)

    assert encoded(typed) == encoded("w")


def test_a_rows_variables_inject_nothing() -> None:
    encoder = ENCODERS[0]
    encoder = replace(encoder, template=ChatTemplate("mine", "{{ date }}" + encoder.template.source))
    talk = replace(conversation(user("x"), assistant("x")), template_kwargs={"date": "<|im_start|>"})
    assert controls(BYTES, encoder.encode(talk))[:2] == ["<|im_start|>", "<|im_end|>"]
    assert encoder.tokenizer.decode(encoder.encode(talk).input_ids.tolist()).startswith("<|im_start|><|im_start|>")


def test_a_template_gets_no_objects_but_their_text() -> None:
    class Stranger:
        def __str__(self) -> str:
            return "<|im_end|>"

    source = "{{ at is string }} {{ at }} " + ENCODERS[0].template.source
    encoder = replace(ENCODERS[0], template=ChatTemplate("strange", source))
    talk = replace(conversation(user("x"), assistant("x")), template_kwargs={"at": Stranger()})
    encoded = encoder.encode(talk)
    assert encoder.tokenizer.decode(encoded.input_ids.tolist()).startswith("True <|im_end|>")
    plain = encoder.encode(replace(talk, template_kwargs={"at": "x"}))
    assert controls(encoder.tokenizer, encoded) == controls(encoder.tokenizer, plain)


def test_a_control_token_that_only_normalisation_makes_is_none() -> None:
    hf = byte_level().hf
    hf.backend_tokenizer.normalizer = normalizers.Lowercase()
    hf.add_tokens([AddedToken("<stop>", special=True, normalized=True)])
    tokenizer = Tokenizer(hf)
    encoder = ChatEncoder(tokenizer, resolve_template("chatml", tokenizer))
    typed = encoder.prompt(conversation(user("x <STOP> x")))
    assert controls(tokenizer, typed) == ["<|im_start|>", "<|im_end|>", "<|im_start|>"]
    assert "x <stop> x" in tokenizer.decode(typed.input_ids.tolist())


def test_content_is_escaped_before_the_template_strips_or_splits_it(chatml: Tokenizer) -> None:
    source = resolve_template("chatml", chatml).source.replace("message.content", "message.content.strip('<>|endim_ ')")
    encoder = ChatEncoder(chatml, ChatTemplate("strips", source))
    encoded = encoder.encode(conversation(user("<|im_end|>"), assistant("ok <|im_end|>x")))
    assert controls(chatml, encoded) == ["<|im_start|>", "<|im_end|>", "<|im_start|>", "<|im_end|>"]
    assert "user\n<|im_end|><|im_end|>" in chatml.decode(encoded.input_ids.tolist())


def test_tokens_added_for_the_data_are_control_tokens_wherever_a_row_has_them() -> None:
    tokenizer = byte_level(special=("<|im_start|>", "<|im_end|>", "<bin_7>", "<bin_8>"))
    encoder = ChatEncoder(tokenizer, resolve_template("chatml", tokenizer), data_tokens=("<bin_7>",))
    encoded = encoder.encode(conversation(user("what is at <bin_7>?"), assistant("not <bin_8> but <bin_7>")))
    seven, eight = (tokenizer.hf.convert_tokens_to_ids(token) for token in ("<bin_7>", "<bin_8>"))
    assert encoded.input_ids.tolist().count(seven) == 2
    assert eight not in encoded.input_ids.tolist()
    assert encoded.targets.token.tolist().count(seven) == 1
    assert encoder.decode_reply(encoded.targets.token.tolist()) == "not <bin_8> but <bin_7><|im_end|>"


@pytest.mark.parametrize("token", ["<|im_end|>", "<|im_start|>", "</s>"])
def test_a_new_token_that_frames_turns_is_no_data(token: str) -> None:
    tokenizer = byte_level(special=("<|im_start|>", "<|im_end|>", "</s>", "<bin_7>"))
    tokenizer.hf.eos_token = "</s>"
    tokenizer = Tokenizer(tokenizer.hf)
    template = resolve_template("chatml", tokenizer)
    rows = conversation(user(f"a {token} b <bin_7>"), assistant("c"))
    plain = ChatEncoder(tokenizer, template, data_tokens=("<bin_7>",)).encode(rows)
    told = ChatEncoder(tokenizer, template, data_tokens=("<bin_7>", token)).encode(rows)
    assert told.input_ids.tolist() == plain.input_ids.tolist()
    assert controls(tokenizer, told).count("<bin_7>") == 1
