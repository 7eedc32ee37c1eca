"""Text to token ids and back: exactly what the tokenizer makes of it, wherever in a sequence the text stands."""

import copy
import re
from collections.abc import Callable, Iterable
from functools import cached_property, lru_cache
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from mmsft.errors import ConfigError

After: TypeAlias = Literal["start", "text", "token"]
"""What a piece of text follows: nothing, other text, or a token such as a medium or a control token."""

# A tokenizer of SentencePiece's kind puts a space before the text it is given. Text put behind one of these, whose ids
# are then cut off, doesn't get one. The first is a byte that no vocabulary merges with a neighbour.
_ANCHORS: Final = ("\x1e", "\n", "^", "¤")
_PROBES: Final = ("a", " a", "\n", "<")

# Stretches of text whose ids are remembered, and the most characters of one: some 10 MB at most.
_REMEMBERED: Final = 128
_SHORT: Final = 4096

# Words whose ids the library remembers. By default it is the first 10,000 that it meets, which a few hundred rows fill;
# an entry takes some 100 bytes.
_WORDS: Final = 200_000


class Ended(NamedTuple):
    """A rendered reply: what is said, and the token that ends it, which is empty where none does."""

    content: str
    end: str


class Tokenizer:
    """A fast tokenizer of `transformers` that never adds a token on its own.

    Attributes:
        hf: the tokenizer, e.g. for its chat template and to be saved.
        added: texts of the added tokens, those made of white space aside.
        special: those of them that are special.
        normalizes: whether it looks for added tokens in normalised text too.
        bos: text of the token that begins each sequence by the tokenizer's own default; empty if it adds none.
    """

    def __init__(self, hf: PreTrainedTokenizerFast) -> None:
        if not getattr(hf, "is_fast", False):
            raise ConfigError(
                f"{hf.name_or_path or type(hf).__name__}: mmsft needs a fast tokenizer; save it with a tokenizer.json"
            )
        self.hf = hf
        # A copy of its own: transformers switches padding and truncation of the original at every call.
        self._backend = copy.deepcopy(hf.backend_tokenizer)
        self._backend.no_padding()
        self._backend.no_truncation()
        # Not documented, and models that look up whole words don't have it; without it, tokens are the same.
        remember = getattr(self._backend.model, "_resize_cache", None)
        if remember is not None:
            remember(_WORDS)
        added = {id: token for id, token in hf.added_tokens_decoder.items() if token.content.strip()}
        tokens = list(added.values())
        self.added = tuple(sorted((token.content for token in tokens), key=len, reverse=True))
        self.special = tuple(sorted((token.content for token in tokens if token.special), key=len, reverse=True))
        self._stop = next((token.content for token in tokens if token.special and not token.rstrip), "")
        self._added_ids = frozenset(added)
        self.normalizes = any(token.normalized for token in tokens) and self._backend.normalizer is not None
        self._border = re.compile("(?!)")
        self._stretch = lru_cache(_REMEMBERED)(self._encoded)
        self._prefixes = any(self._plain(probe) != self._anchored(self._plain, probe) for probe in _PROBES)
        if not self._prefixes and not self._backend.encode_special_tokens:
            self._border = _border(hf.added_tokens_decoder.values())
        self.bos = self._default_bos()

    def __reduce__(self) -> tuple[type["Tokenizer"], tuple[PreTrainedTokenizerFast]]:
        return Tokenizer, (self.hf,)

    def __len__(self) -> int:
        return len(self.hf)

    @property
    def eos(self) -> str:
        """Text of the token that ends a sequence, or an empty string."""
        return str(self.hf.eos_token or "")

    @cached_property
    def named(self) -> dict[str, str]:
        """Tokens with a role of their own, by the name by which templates can use them, e.g. ``eos_token``."""
        return {name: token for name, token in self.hf.special_tokens_map.items() if isinstance(token, str)}

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Ids of the tokens that end a sequence whatever the template."""
        return () if self.hf.eos_token_id is None else (int(self.hf.eos_token_id),)

    def text(self, text: str, after: After = "start") -> list[int]:
        """Returns the ids of a piece of a rendered conversation; control tokens in it become control tokens."""
        if after == "start" or not self._prefixes:
            return self._plain(text)
        if after == "token" and self._stop:
            return self._plain(self._stop + text)[1:]
        return self._anchored(self._plain, text)

    def count(self, text: str) -> int:
        """Returns how many tokens a text has at the beginning of a sequence."""
        return len(self.text(text))

    def reply(self, text: str) -> list[int]:
        """Returns the ids of what a model says after some text: nothing merges with that, no space is put before it."""
        return self.text(text, after="text")

    def literal(self, text: str) -> list[int]:
        """Returns the ids of text inside a sequence, none of them an added token, whatever the text says.

        Raises:
            ConfigError: the vocabulary can't spell it.
        """
        spellings = (text,), tuple(text)
        for spelling in spellings:
            ids = [token for piece in spelling for token in self._anchored(self._spelled, piece)]
            if self._added_ids.isdisjoint(ids):
                return ids
        raise ConfigError(
            f"the tokenizer can't spell {text!r} without the control token of that name; rename the token"
        )

    def decode(self, ids: list[int]) -> str:
        """Returns the text of ids from inside a sequence, control tokens and leading space included."""
        if not self._prefixes:
            return self._decoded(ids)
        before = self._plain(_ANCHORS[0])
        lead, text = self._decoded(before), self._decoded(before + list(ids))
        return text[len(lead) :] if text.startswith(lead) else self._decoded(ids)

    def hides_control(self, text: str) -> bool:
        """Whether normalisation makes a control token of text that doesn't contain one as it is written."""
        if not self.normalizes or any(token in text for token in self.added):
            return False
        normal = self._backend.normalizer.normalize_str(text)
        return any(token in normal for token in self.added)

    def ends(self, reply: str) -> list[Ended]:
        """Cuts a rendered reply before the special token that ends it, then before the one before that, and so on."""
        cuts, rest = [], reply.rstrip()
        while rest.endswith(self.special):
            token = next(token for token in self.special if rest.endswith(token))
            cuts.append(Ended(rest[: -len(token)], token))
            rest = cuts[-1].content.rstrip()
        return cuts or [Ended(reply, "")]

    def _plain(self, text: str) -> list[int]:
        """Returns the ids of text by itself, put together from its stretches: a template's own come in every row."""
        ids: list[int] = []
        for stretch in self._border.split(text):
            ids += self._stretch(stretch) if len(stretch) <= _SHORT else self._encoded(stretch)
        return ids

    def _encoded(self, text: str) -> list[int]:
        # Ids alone, without the offsets that `encode` also works out. A batch of one wakes none of the library's
        # threads, which could hang in a data worker; a larger one takes no less time.
        ids: list[int] = self._backend.encode_batch_fast([text], add_special_tokens=False)[0].ids
        return ids

    def _spelled(self, text: str) -> list[int]:
        """Runs the tokenizer's steps, all but the search for added tokens."""
        backend = self._backend
        if backend.normalizer is not None:
            text = backend.normalizer.normalize_str(text)
        words = (
            [text] if backend.pre_tokenizer is None else [w for w, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
        )
        return [token.id for word in words for token in backend.model.tokenize(word)]

    def _anchored(self, encode: Callable[[str], list[int]], text: str) -> list[int]:
        for anchor in _ANCHORS:
            before, ids = encode(anchor), encode(anchor + text)
            if before and ids[: len(before)] == before:
                return ids[len(before) :]
        raise ConfigError(f"the tokenizer joins every trial text with {text[:40]!r}; mmsft can't use it")

    def _decoded(self, ids: list[int]) -> str:
        text: str = self._backend.decode(ids, skip_special_tokens=False)
        return text

    def _default_bos(self) -> str:
        ids: Any = self.hf("a")["input_ids"]
        return str(self.hf.bos_token) if self.hf.bos_token_id is not None and ids[0] == self.hf.bos_token_id else ""


def _border(tokens: Iterable[AddedToken]) -> re.Pattern[str]:
    """Returns what finds the tokens that part a text: what stands on one side makes no difference to the other.

    The library looks for the longest of these tokens first of all, before it normalises, and goes on with each stretch
    between them by itself. Where one takes white space along, or looks at the letters beside it, nothing is found.
    """
    first = [token for token in tokens if not token.normalized and token.content]
    if any(token.lstrip or token.rstrip or token.single_word for token in first):
        return re.compile("(?!)")
    return re.compile(f"({any_of(token.content for token in first)})")


def any_of(texts: Iterable[str]) -> str:
    """Returns a regular expression that matches the longest of the texts."""
    return "|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True)) or "(?!)"
