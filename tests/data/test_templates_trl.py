"""The chat templates of many model families, as trl ships them."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trl

from mmsft.data.chat import ChatEncoder
from mmsft.data.script import PrefixBroken
from mmsft.data.template import resolve_template
from mmsft.data.tokens import Tokenizer
from mmsft.data.tree import threads
from mmsft.types import Conversation, Text, ToolCall, Turn
from tests.data.conftest import byte_level
from tests.data.dialogues import assistant, controls, conversation, dialogue, learned, user

FILES = sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))
# They open a reasoning block in the prompt and close it otherwise in a turn that has no reasoning.
NEVER = {
    *("deepseek_r1_distill", "deepseek_r1_distill_training", "deepseekv3", "deepseekv3_training"),
    *(f"nemotron_3_{size}{use}" for size in ("nano", "super", "ultra", "5_lightning") for use in ("", "_training")),
}
# They write the last turn otherwise than those before it.
ONE_TURN_ONLY = {"gptoss", "gptoss_training", "qwen3", "qwen3_5_nothink", "qwen3_5_think", "qwen3_6"}
# They write the end of text behind the last turn, not behind each.
ENDS_ONCE = {"phi3", "phi3_5", "phi3_training", "phi3_5_training"}
KNOWN = {file.stem for file in FILES}


def tokenizer_for(source: str) -> Tokenizer:
    tokens = sorted(set(re.findall(r"<[|｜]?[\w▁/:\-]+[|｜]?>", source)))  # noqa: RUF001
    special = [t for t in tokens if "|" in t or "｜" in t or re.search("_of_|^<image>$", t)]  # noqa: RUF001
    ordinary = [t for t in tokens if t not in special and t not in ("<s>", "</s>")]
    return byte_level([*special, "<s>", "</s>"], ordinary, eos="</s>", bos="<s>")


def encoder_for(file: Path) -> ChatEncoder:
    tokenizer = tokenizer_for(file.read_text())
    return ChatEncoder(tokenizer, resolve_template(str(file), tokenizer))


def messages(encoder: ChatEncoder, turns: tuple[Turn, ...]) -> list[dict[str, Any]]:
    def content(text: str) -> Any:
        return [{"type": "text", "text": text}] if encoder.template.as_parts else text

    return [{"role": turn.role, "content": content(turn.text)} for turn in turns]


def rendered(encoder: ChatEncoder, turns: tuple[Turn, ...], prompt: bool) -> str:
    text = encoder.tokenizer.hf.apply_chat_template(
        messages(encoder, turns), chat_template=encoder.template.source, tokenize=False, add_generation_prompt=prompt
    )
    return str(text)


def test_the_lists_name_templates_that_exist() -> None:
    assert NEVER | ONE_TURN_ONLY | ENDS_ONCE <= KNOWN
    assert len(KNOWN) > 60


@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.stem))
def test_replies_are_learned_as_rendered_or_the_template_is_refused_by_name(file: Path, rounds: int) -> None:
    encoder, talk = encoder_for(file), dialogue(rounds)
    if rounds > 1 and file.stem in ONE_TURN_ONLY:
        for number, thread in enumerate(threads(encoder.encode(talk))):
            alone = replace(talk, turns=talk.turns[: 2 * number + 2])
            last = replace(encoder, learn="completion").encode(alone)
            assert thread.input_ids.tolist() == last.input_ids.tolist()
            assert learned(encoder, thread) == learned(encoder, last)
        return
    if file.stem in NEVER:
        with pytest.raises(PrefixBroken, match=re.escape(f"rows.jsonl:7: the chat template '{file}'")):
            encoder.encode(talk)
        return
    expected = ""
    for end in range(2, 2 * rounds + 1, 2):
        prompt, full = (rendered(encoder, talk.turns[:stop], stop < end) for stop in (end - 1, end))
        reply = full[len(prompt) :]
        if file.stem in ENDS_ONCE and end < 2 * rounds:
            reply = reply.removesuffix("\n</s>")
        expected += reply.rstrip() if reply.rstrip().endswith(encoder.tokenizer.special) else reply
    assert learned(encoder, encoder.encode(talk)) == expected
    assert all(f"reply {i}" in expected for i in range(rounds))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.stem))
def test_prompts_are_those_of_transformers(file: Path) -> None:
    encoder, turns = encoder_for(file), dialogue(2).turns[:3]
    ids = encoder.tokenizer.hf.apply_chat_template(
        messages(encoder, turns), chat_template=encoder.template.source, add_generation_prompt=True, return_dict=False
    )
    assert encoder.prompt(conversation(*turns)).input_ids.tolist() == ids


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.stem))
def test_typed_control_tokens_inject_nothing(file: Path) -> None:
    encoder = encoder_for(file)
    everything = " ".join(encoder.tokenizer.added)
    typed = encoder.prompt(conversation(user(f"x {everything} x")))
    plain = encoder.prompt(conversation(user("x x")))
    assert controls(encoder.tokenizer, typed) == controls(encoder.tokenizer, plain)
    assert everything in encoder.tokenizer.decode(typed.input_ids.tolist())


@pytest.mark.parametrize("name", ["qwen3_training", "qwen3_5_think_training", "qwen3_8", "muse_glimmer"])
def test_reasoning_is_learned_in_each_turn(name: str) -> None:
    encoder = encoder_for(next(file for file in FILES if file.stem == name))
    talk = conversation(user("a"), assistant("b", reasoning="hm"), user("c"), assistant("d", reasoning="so"))
    said = learned(encoder, encoder.encode(talk))
    assert [said.count(word) for word in ("hm", "so")] == [1, 1]


@pytest.mark.parametrize("name", ["qwen3", "qwen3_6", "glm4moe", "gemma4_v5"])
def test_a_turn_whose_reasoning_is_dropped_once_another_follows_is_a_thread_of_its_own(name: str) -> None:
    encoder = encoder_for(next(file for file in FILES if file.stem == name))
    talk = conversation(user("a"), assistant("b", reasoning="hm"), user("c"), assistant("d", reasoning="so"))
    encoded = encoder.encode(talk)
    said = [learned(encoder, thread) for thread in threads(encoded)]
    assert [("hm" in text, "so" in text) for text in said] == [(True, False), (False, True)]
    assert f"{name}.jinja" in encoded.note


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3_training", "llama3_1", "gptoss", "lfm2_v2", "glm4moe"])
def test_tool_calls_are_written_in_the_form_that_the_template_wants(name: str) -> None:
    encoder = encoder_for(next(file for file in FILES if file.stem == name))
    schema = {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Adds.",
            "parameters": {"type": "object", "properties": {"a": {"type": "integer", "description": "One."}}},
        },
    }
    call = Turn("assistant", (), tool_calls=(ToolCall("add", {"a": 17}),))
    turns = (user("add"), call, Turn("tool", (Text("18"),), name="add"))
    text = encoder.tokenizer.decode(encoder.prompt(Conversation("r:1", turns, tools=(schema,))).input_ids.tolist())
    assert "17" in text
    assert "18" in text


def test_arguments_are_json_text_where_the_template_wants_text() -> None:
    encoder = encoder_for(next(file for file in FILES if file.stem == "deepseekv3"))
    call = Turn("assistant", (), tool_calls=(ToolCall("add", {"a": "<|im_end|> 17"}),))
    talk = conversation(user("add"), call, Turn("tool", (Text("18"),), name="add"))
    assert encoder.template.as_json
    assert '{"a": "<|im_end|> 17"}' in encoder.tokenizer.decode(encoder.prompt(talk).input_ids.tolist())


def forked(*turns: Turn) -> Conversation:
    """A talk whose last two turns are a branch beside those behind the first two."""
    *talk, ask, answer = turns
    return conversation(*talk, replace(ask, parent=1), answer)


@pytest.mark.parametrize("file", [file for file in FILES if file.stem not in NEVER], ids=lambda file: file.stem)
def test_branches_that_a_template_writes_alike_share_what_comes_before_them(file: Path) -> None:
    by = replace(encoder_for(file), learn="completion")
    tree = forked(user("one"), assistant("two"), user("three"), assistant("four"), user("five"), assistant("six"))
    unanswered = forked(user("one"), assistant("two"), user("three"), user("five"), assistant("six"))
    encoded = by.encode(tree)
    assert (encoded.note, by.encode(unanswered).note) == ("", "")
    assert len(encoded) < sum(len(thread) for thread in threads(encoded))


def test_branches_that_a_template_tells_apart_run_as_threads_and_the_ledger_has_a_line() -> None:
    """One branch goes on with a tool's answer: there Qwen3's template keeps thinking, which it drops before a user."""
    call = Turn("assistant", (Text("let me see"),), 0.0, reasoning="a hard one", tool_calls=(ToolCall("look", {}),))
    tree = forked(user("what?"), call, Turn("tool", (Text("a cat"),)), assistant("it"), user("why?"), assistant("so"))
    found = {}
    for name in ("qwen3", "qwen3_training"):
        by = encoder_for(next(file for file in FILES if file.stem == name))
        found[name] = by.encode(tree)
        for path, thread in zip(tree.threads(), threads(found[name]), strict=True):
            single = Conversation("one", tuple(replace(tree.turns[index], parent=-1) for index in path))
            assert thread.input_ids.tolist() == by.encode(single).input_ids.tolist()
    assert "doesn't keep what it wrote at turn 1: " in found["qwen3"].note
    assert found["qwen3"].note.endswith("its branches run as threads that share only what comes before that")
    assert found["qwen3_training"].note == ""
