import pickle
from collections.abc import Callable
from functools import lru_cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from mmsft.data.tokens import Tokenizer
from tests.data.conftest import byte_level, sentence_piece

MAKERS: dict[str, Callable[[], Tokenizer]] = {
    "byte level": byte_level,
    "space before the first word": sentence_piece,
    "space before every stretch": lambda: sentence_piece(scheme="always"),
    "space by normalisation": lambda: sentence_piece(legacy=True),
}
TOKENIZERS = {name: make() for name, make in MAKERS.items()}
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return TOKENIZERS[request.param]


def test_text_is_what_transformers_makes_of_it(tokenizer: Tokenizer) -> None:
    text = f"the end{tokenizer.eos}and\n\nthe rest"
    assert tokenizer.text(text) == tokenizer.hf(text, add_special_tokens=False)["input_ids"]


ODD = {
    "takes space on its left": AddedToken("<mask>", lstrip=True, normalized=False),
    "takes space on its right": AddedToken("<mask>", rstrip=True, normalized=False),
    "stands for whole words": AddedToken("the", single_word=True, normalized=False),
    "begins with another one": AddedToken("<|im_end|>is", normalized=False),
    "overlaps another one": AddedToken("is<|im_", special=True, normalized=False),
    "is white space": AddedToken("  ", normalized=False),
    "is looked for after normalisation": AddedToken("is", normalized=True),
}
STRETCHES = st.lists(st.sampled_from(["<|im_end|>", "</s>", "<mask>", "the", "is", " ", "\n", "an", "é"]), max_size=8)


@pytest.mark.parametrize("odd", [None, *ODD])
@given(stretches=STRETCHES)
def test_a_text_cut_at_control_tokens_is_what_transformers_makes_of_it(odd: str | None, stretches: list[str]) -> None:
    text = "".join(stretches)
    for tokenizer in with_odd(odd):
        assert tokenizer.text(text) == tokenizer.hf(text, add_special_tokens=False)["input_ids"]


@lru_cache
def with_odd(odd: str | None) -> list[Tokenizer]:
    tokenizers = [make() for make in MAKERS.values()]
    for tokenizer in tokenizers if odd else ():
        tokenizer.hf.add_tokens([ODD[str(odd)]])
    return [Tokenizer(tokenizer.hf) for tokenizer in tokenizers]


def test_what_is_remembered_does_not_change_with_what_is_returned() -> None:
    tokenizer = byte_level()
    ids = tokenizer.text("the")
    ids.append(0)
    assert tokenizer.text("the") == ids[:-1]


@given(TEXTS)
def test_a_reply_decodes_to_itself(text: str) -> None:
    for tokenizer in TOKENIZERS.values():
        if "\x1e" not in text and "▁" not in text and not any(token in text for token in tokenizer.added):
            # ▁ is how SentencePiece writes a space, so it can't be told from one.
            assert tokenizer.decode(tokenizer.reply(text)) == text


def test_a_reply_has_no_space_of_the_tokenizers_own(llama: Tokenizer) -> None:
    assert llama.text("a") != llama.reply("a")
    assert llama.text("x a") == llama.text("x") + llama.reply(" a")


def test_a_reply_does_not_merge_with_the_prompt() -> None:
    tokenizer = byte_level()
    apart = tokenizer.text("a\n") + tokenizer.reply("\n\nb")
    assert apart != tokenizer.text("a\n\n\nb")
    assert tokenizer.decode(apart) == "a\n\n\nb"


def test_text_after_a_token_is_tokenised_as_behind_it(tokenizer: Tokenizer) -> None:
    assert tokenizer.text("the\n", after="token") == tokenizer.text(f"{tokenizer.eos}the\n")[1:]


@given(TEXTS, TEXTS)
def test_a_literal_holds_no_control_token_and_decodes_to_itself(before: str, after: str) -> None:
    for tokenizer in TOKENIZERS.values():
        controls = set(tokenizer.hf.added_tokens_decoder)
        for token in tokenizer.added:
            ids = tokenizer.literal(token)
            assert controls.isdisjoint(ids)
            assert tokenizer.decode(ids) == token
        mixed = before + tokenizer.eos + after
        assert controls.isdisjoint(tokenizer.literal(mixed))


def test_a_literal_is_spelled_also_if_the_vocabulary_knows_it_as_a_word() -> None:
    backend = Backend(models.Unigram([("<unk>", 0.0), *((c, -5.0) for c in "<>|stop"), ("<|stop|>", -1.0)], 0))
    backend.add_special_tokens([AddedToken("<|stop|>", special=True)])
    hf = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|stop|>")
    tokenizer = Tokenizer(hf)
    assert len(tokenizer.text("<|stop|>")) == 1
    assert len(tokenizer.literal("<|stop|>")) == len("<|stop|>")


def test_a_control_token_that_normalisation_makes_is_noticed() -> None:
    backend = Backend(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_tokens([AddedToken("<stop>", special=True, normalized=True)])
    tokenizer = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend))
    assert tokenizer.hides_control("a <STOP> a")
    assert not tokenizer.hides_control("a <stop> a")
    assert not byte_level().hides_control("<|IM_END|>")


def test_bos_is_the_token_that_the_tokenizer_adds_by_itself() -> None:
    assert byte_level(bos="<|im_start|>").bos == ""
    hf = sentence_piece().hf
    start = hf.convert_tokens_to_ids("<s>")
    hf.backend_tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", start)])
    assert Tokenizer(hf).bos == "<s>"


def test_it_survives_pickling(tokenizer: Tokenizer) -> None:
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.text("the end") == tokenizer.text("the end")
    assert again.special == tokenizer.special


def test_padding_that_others_ask_of_the_tokenizer_does_not_reach_it() -> None:
    tokenizer = byte_level()
    tokenizer.hf.pad_token = "<|endoftext|>"
    before = tokenizer.text("the end")
    tokenizer.hf(["a"], padding="max_length", max_length=64, truncation=True)
    assert tokenizer.text("the end") == before


def test_ends_are_found_from_the_last_on() -> None:
    tokenizer = byte_level()
    cuts = tokenizer.ends("a <|im_end|>\n<|endoftext|> \n")
    assert cuts == [("a <|im_end|>\n", "<|endoftext|>"), ("a ", "<|im_end|>")]
    assert tokenizer.ends("a\n") == [("a\n", "")]
