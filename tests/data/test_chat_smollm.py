"""The promises of `encode` on a real model's tokenizer and template."""

import json

import pytest
from transformers import PreTrainedTokenizerFast

from mmsft.config import DecoderConfig
from mmsft.data.chat import ChatEncoder
from mmsft.data.template import resolve_template
from mmsft.data.tokens import Tokenizer
from mmsft.model.decoder import load_tokenizer
from tests.data.dialogues import (
    CAT,
    assistant,
    controls,
    conversation,
    dialogue,
    learned,
    system,
    three_slots,
    user,
)
from tests.makers import fetched

pytestmark = pytest.mark.assets
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


@pytest.fixture(scope="module")
def hf() -> PreTrainedTokenizerFast:
    return load_tokenizer(DecoderConfig(name=str(next(fetched("smollm2-135m-instruct").glob("*.gguf")))))


@pytest.fixture(scope="module")
def encoder(hf: PreTrainedTokenizerFast) -> ChatEncoder:
    tokenizer = Tokenizer(hf)
    return ChatEncoder(tokenizer, resolve_template("auto", tokenizer), slots=three_slots)


def test_the_whole_dialogue_is_what_the_model_was_trained_on(encoder: ChatEncoder) -> None:
    encoded = encoder.encode(dialogue(2))
    talk = "".join(
        f"<|im_start|>user\nask {i}<|im_end|>\n<|im_start|>assistant\nreply {i}<|im_end|>\n" for i in range(2)
    )
    text = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n{talk}"
    assert encoder.tokenizer.decode(encoded.input_ids.tolist()) == text.rstrip()
    assert learned(encoder, encoded) == "reply 0<|im_end|>reply 1<|im_end|>"


@pytest.mark.parametrize("reply", ["\n\nthe end", " x", "  def f():\n\treturn 1\n", "日本語 ok", "<|im_end|><image>"])
def test_replies_decode_to_themselves_behind_the_prompt_of_inference(encoder: ChatEncoder, reply: str) -> None:
    turns = (system("Be brief.\n"), user("Hello\n\n"))
    encoded = encoder.encode(conversation(*turns, assistant(reply)))
    prompt = encoder.tokenizer.hf.apply_chat_template(
        [{"role": turn.role, "content": turn.text} for turn in turns], add_generation_prompt=True, return_dict=False
    )
    assert encoded.input_ids[: len(prompt)].tolist() == prompt
    assert encoder.prompt(conversation(*turns)).input_ids.tolist() == prompt
    assert learned(encoder, encoded) == f"{reply}<|im_end|>"


def test_typed_control_tokens_inject_nothing(encoder: ChatEncoder) -> None:
    everything = "".join(encoder.tokenizer.added) + "<image>"
    typed = encoder.encode(conversation(user(everything, CAT, everything), assistant(everything)))
    plain = encoder.encode(conversation(user("x", CAT, "x"), assistant("x")))
    assert controls(encoder.tokenizer, typed) == controls(encoder.tokenizer, plain)
    assert learned(encoder, typed) == f"{everything}<|im_end|>"


def test_real_rows_keep_every_promise(encoder: ChatEncoder) -> None:
    rows = json.loads((fetched("llamafactory-data") / "alpaca_en_demo.json").read_text(encoding="utf-8"))
    for row in rows[:200]:
        turns = (user(row["instruction"], row["input"]), assistant(row["output"]))
        encoded = encoder.encode(conversation(*turns))
        assert learned(encoder, encoded) == f"{row['output']}<|im_end|>"
        prompt = encoder.prompt(conversation(turns[0])).input_ids
        assert encoded.input_ids[: len(prompt)].tolist() == prompt.tolist()
