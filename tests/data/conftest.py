"""Tokenizers of the two kinds in use, small enough to be made in memory."""

from collections.abc import Sequence

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mmsft.data import tokens
from tests.web import web

__all__ = ["web"]

CHATML = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")


def byte_level(
    special: Sequence[str] = CHATML,
    ordinary: Sequence[str] = (),
    eos: str = "<|im_end|>",
    bos: str | None = None,
    template: str | None = None,
) -> tokens.Tokenizer:
    """A byte-level BPE in GPT-2's manner that merges letters into a few words, and newlines."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ċ", "Ċ"), ("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "s"), ("Ġ", "is"), ("a", "n"), ("an", "d")]
    vocab = {token: index for index, token in enumerate([*alphabet, *("".join(pair) for pair in merges)])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return _wrapped(backend, special, ordinary, eos, bos, template)


def sentence_piece(scheme: str = "first", legacy: bool = False, template: str | None = None) -> tokens.Tokenizer:
    """A BPE in Llama's manner: a space before the text it is given, bytes for what it doesn't know.

    `legacy` puts the space by normalisation, so also behind each control token.
    """
    letters = [chr(code) for code in range(33, 127) if chr(code) != "_"]
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("▁", "a"), ("i", "s"), ("▁", "is"), ("▁", "▁")]
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *letters, *("".join(pair) for pair in merges)]
    vocab = {token: index for index, token in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if legacy:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _wrapped(backend, ("<s>", "</s>"), (), "</s>", "<s>", template)


def _wrapped(
    backend: Tokenizer,
    special: Sequence[str],
    ordinary: Sequence[str],
    eos: str,
    bos: str | None,
    template: str | None,
) -> tokens.Tokenizer:
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in ordinary])
    hf = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos, bos_token=bos)
    hf.chat_template = template
    return tokens.Tokenizer(hf)


@pytest.fixture
def chatml() -> tokens.Tokenizer:
    return byte_level(ordinary=("<think>", "</think>", "<tool_call>", "</tool_call>"))


@pytest.fixture(params=["first", "always", "legacy"])
def llama(request: pytest.FixtureRequest) -> tokens.Tokenizer:
    if request.param == "legacy":
        return sentence_piece(legacy=True)
    return sentence_piece(scheme=request.param)
