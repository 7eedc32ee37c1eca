from pathlib import Path
from typing import Any

import pytest

from mmsft.data.chat import ChatEncoder
from mmsft.data.template import SHIPPED, ChatTemplate, resolve_template
from mmsft.data.tokens import Tokenizer
from mmsft.errors import ConfigError, DataError
from tests.data.conftest import byte_level, sentence_piece
from tests.data.dialogues import assistant, conversation, dialogue, learned, system, user, written

VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    "\n\n### Instruction:\nask 0\n\n### Response:reply 0</s>"
)


# What templates use of `transformers`: filters, functions, statements, and how white space around these is left out.
EVERYTHING = """{{ bos_token }}{{ tools | tojson(indent=1) if tools }}{{ documents is none }}{{ style }}
{%- set state = namespace(seen=0) %}{{ strftime_now('%Y') }}
{% for m in messages %}
    {%- if m.role == 'system' %}{% continue %}{% endif %}
    {% generation %}{{ m | tojson(sort_keys=true) }}{% endgeneration %}
    {%- set state.seen = state.seen + 1 %}
    {%- if state.seen > 2 %}{% break %}{% endif %}
{% endfor %}
{{ state.seen }}{{ messages[0].missing }}{% if add_generation_prompt %}{{ dict(a='<é>') | tojson }}{% endif %}"""


@pytest.mark.parametrize("generate", [False, True])
@pytest.mark.parametrize("tools", [(), ({"type": "function", "function": {"name": "add"}},)])
def test_a_template_writes_what_it_does_in_transformers(tools: tuple[dict[str, Any], ...], generate: bool) -> None:
    tokenizer = byte_level(bos="<|im_start|>")
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "<é>"},
        {"role": "assistant", "content": "b", "reasoning_content": "hm"},
        {"role": "user", "content": "never seen"},
    ]
    theirs = tokenizer.hf.apply_chat_template(
        messages,
        chat_template=EVERYTHING,
        tools=list(tools) or None,
        add_generation_prompt=generate,
        tokenize=False,
        style="plain",
    )
    variables = {**tokenizer.named, "style": "plain"}
    ours = ChatTemplate("mine", EVERYTHING).render(messages, variables, tools=tools, generate=generate)
    assert ours == theirs


def test_a_variable_that_would_hide_the_messages_is_refused(chatml: Tokenizer) -> None:
    with pytest.raises(DataError, match=r"'chatml' refuses the conversation: .*'messages'"):
        resolve_template("chatml", chatml).render([{"role": "user", "content": "a"}], {"messages": []})


@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_vicuna_learns_each_reply_and_its_end_token(llama: Tokenizer, rounds: int) -> None:
    encoder = ChatEncoder(llama, resolve_template("vicuna", llama))
    encoded = encoder.encode(dialogue(rounds))
    assert learned(encoder, encoded) == "".join(f" reply {i}</s>" for i in range(rounds))
    talk = "".join(f"USER: ask {i} ASSISTANT: reply {i}</s>" for i in range(rounds))
    assert written(encoder, dialogue(rounds)) == VICUNA + talk


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("plain", "ask 0reply 0\n"),
        ("alpaca", ALPACA),
        ("hash", "###Human: ask 0\n###Assistant: reply 0</s>\n"),
    ],
)
def test_shipped_templates_write_the_published_form(llama: Tokenizer, name: str, text: str) -> None:
    assert written(ChatEncoder(llama, resolve_template(name, llama)), dialogue(1)) == text


def test_chatml_has_no_system_turn_of_its_own(chatml: Tokenizer) -> None:
    encoder = ChatEncoder(chatml, resolve_template("chatml", chatml))
    talk = "<|im_start|>user\nask 0<|im_end|>\n<|im_start|>assistant\nreply 0<|im_end|>\n"
    assert written(encoder, dialogue(1)) == talk


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("rounds", [1, 3])
def test_shipped_templates_keep_the_prefix_rule(chatml: Tokenizer, name: str, rounds: int) -> None:
    encoder = ChatEncoder(chatml, resolve_template(name, chatml))
    said = learned(encoder, encoder.encode(dialogue(rounds)))
    assert [said.count(f"reply {i}") for i in range(rounds)] == [1] * rounds
    assert "ask" not in said


@pytest.mark.parametrize("name", ["alpaca", "vicuna", "chatml", "hash"])
def test_shipped_templates_take_a_system_turn(chatml: Tokenizer, name: str) -> None:
    encoder = ChatEncoder(chatml, resolve_template(name, chatml))
    assert written(encoder, conversation(system("Be kind."), user("a"), assistant("b"))).count("Be kind.") == 1


def test_plain_refuses_a_system_turn(chatml: Tokenizer) -> None:
    encoder = ChatEncoder(chatml, resolve_template("plain", chatml))
    with pytest.raises(DataError, match="plain has no place for a system turn"):
        encoder.encode(conversation(system("Be kind."), user("a"), assistant("b")))


def test_the_first_token_is_put_only_if_the_tokenizer_puts_one_itself() -> None:
    # SmolLM2's bos_token is <|im_start|>, which it doesn't put before a text.
    named = byte_level(bos="<|im_start|>")
    assert written(ChatEncoder(named, resolve_template("vicuna", named)), dialogue(1)).startswith("A chat")
    tokenizer = sentence_piece()
    tokenizer.bos = "<s>"
    assert written(ChatEncoder(tokenizer, resolve_template("vicuna", tokenizer)), dialogue(1)).startswith("<s>A chat")


def test_auto_is_the_tokenizers_own(chatml: Tokenizer) -> None:
    chatml.hf.chat_template = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    assert (
        written(ChatEncoder(chatml, resolve_template("auto", chatml)), dialogue(1))
        == "ask 0<|im_end|>reply 0<|im_end|>"
    )


def test_a_template_for_content_parts_gets_parts(chatml: Tokenizer) -> None:
    chatml.hf.chat_template = "{% for m in messages %}{{ m.content[0].text }}<|im_end|>{% endfor %}"
    template = resolve_template("auto", chatml)
    assert template.as_parts
    assert written(ChatEncoder(chatml, template), dialogue(1)) == "ask 0<|im_end|>reply 0<|im_end|>"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("auto", "has no chat template; choose plain, alpaca"),
        ("vicunna", r"there is no 'vicunna' \(did you mean 'vicuna'\?\)"),
        ("nowhere/mine.jinja", "nowhere/mine.jinja can't be read"),
        ("syntax", "line 2: "),
        ("mute", "doesn't show what a user says"),
    ],
)
def test_a_template_that_can_not_serve_is_refused(chatml: Tokenizer, tmp_path: Path, name: str, message: str) -> None:
    files = {"syntax": "a\n{% for %}", "mute": "hello"}
    if name in files:
        path = tmp_path / f"{name}.jinja"
        path.write_text(files[name])
        name = str(path)
    with pytest.raises(ConfigError, match=message):
        resolve_template(name, chatml)


def test_chatml_needs_its_tokens(llama: Tokenizer) -> None:
    with pytest.raises(ConfigError, match=r"chatml needs the tokens <\|im_end\|>, <\|im_start\|>"):
        resolve_template("chatml", llama)
