"""Turns as the messages of a chat template, in which nothing that somebody wrote can act as a control token."""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final, NamedTuple, TypeAlias

from mmsft.data.tokens import Tokenizer, any_of
from mmsft.errors import DataError
from mmsft.types import Conversation, Media, Text, ToolCall, Turn

# Plane 15 holds the media, plane 16 the literals, both by index: no template looks for these characters.
_MEDIA: Final = 0xF0000
_LITERAL: Final = 0x100000
_MOST: Final = 0xFFFD
_PRIVATE: Final = "[\U000f0000-\U0010ffff]"
_SPLIT: Final = re.compile(f"({_PRIVATE})")


class Shown(NamedTuple):
    """A medium in rendered text, and the turn in which it stands."""

    media: Media
    turn: Turn


Piece: TypeAlias = tuple[str, bool] | Shown
"""A stretch of rendered text and whether it is literal (no control token in it is one); or a medium."""


class Guard(NamedTuple):
    """Finds what must stay text: control tokens, and characters that stand for something else here.

    Attributes:
        tokenizer: says what a control token is.
        speech: for what an assistant says, where special tokens are none of its own.
        other: for everybody else.
    """

    tokenizer: Tokenizer
    speech: "Watch"
    other: "Watch"

    def split(self, text: str) -> Iterator[tuple[str, bool]]:
        """Splits text that nobody in the conversation says into stretches, and says which of them are literal."""
        at = 0
        for match in self.other.pattern(text).finditer(text):
            yield text[at : match.start()], False
            yield match[0], True
            at = match.end()
        yield text[at:], False


class Watch(NamedTuple):
    """Finds control tokens and the characters that stand for something else here.

    Attributes:
        tokens: finds the tokens alone, which is fast: they tend to begin alike.
        everything: finds both, character by character.
    """

    tokens: re.Pattern[str]
    everything: re.Pattern[str]

    @classmethod
    def of(cls, tokens: tuple[str, ...]) -> "Watch":
        """Returns a watch for the tokens."""
        return cls(re.compile(any_of(tokens)), re.compile(f"{any_of(tokens)}|{_PRIVATE}"))

    def pattern(self, text: str) -> re.Pattern[str]:
        """Returns what finds all there is to find in the text."""
        plain = text.isascii() or not _SPLIT.search(text)
        return self.tokens if plain else self.everything


def guard(tokenizer: Tokenizer, marker: str | None = None, free: Collection[str] = ()) -> Guard:
    """Returns the guard of a tokenizer.

    Args:
        tokenizer: says what a control token is.
        marker: a control token that an assistant may use, e.g. ``<answer>``.
        free: control tokens that everybody may use: those that the user added for the data, e.g. ``<bin_7>``.
    """
    special = tuple(token for token in tokenizer.special if token != marker and token not in free)
    added = tuple(token for token in tokenizer.added if token not in free)
    return Guard(
        tokenizer,
        speech=Watch.of(special),
        other=Watch.of(added),
    )


class Messages:
    """The messages of one conversation, with a private-use character for each medium and for each control token typed.

    Attributes:
        media_of: turn → the characters of its media, for turns that were asked for.
        tools: the functions' schemas.
        variables: the row's own variables for the template.
    """

    def __init__(self, conversation: Conversation, guard: Guard) -> None:
        self._conversation = conversation
        self._guard = guard
        self._literals: dict[str, str] = {}
        self._literal_of: dict[str, str] = {}
        self._media: dict[str, Shown] = {}
        self._spoken: dict[int, dict[str, Any]] = {}
        self.media_of: dict[int, str] = {}
        self.tools = tuple(self._protected(tool, False) for tool in conversation.tools)
        self.variables = self._protected(conversation.template_kwargs, False)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns turn `index` as a message."""
        if index not in self._spoken:
            self._spoken[index] = self._message(index)
        return self._spoken[index]

    def inline_reasoning(self, index: int) -> None:
        """Writes a turn's reasoning into its content, for templates that don't know reasoning."""
        message = self[index]
        reasoning = message.pop("reasoning_content")
        message["content"] = f"<think>\n{reasoning}\n</think>\n\n{message['content']}"

    def pieces(self, text: str) -> Iterator[Piece]:
        """Splits rendered text into text, literals and media."""
        for piece in _SPLIT.split(text) if self._media or self._literals else (text,):
            if not piece:
                continue
            if piece in self._media:
                yield self._media[piece]
            elif piece in self._literals:
                yield self._literals[piece], True
            else:
                yield piece, False

    def shown(self, text: str) -> str:
        """Returns rendered text as its reader would write it."""
        return "".join(str(piece.media) if isinstance(piece, Shown) else piece[0] for piece in self.pieces(text))

    def _message(self, index: int) -> dict[str, Any]:
        turn = self._conversation.turns[index]
        speech = turn.role == "assistant"
        content, media = self._content(turn, speech)
        self.media_of[index] = media
        message: dict[str, Any] = {"role": turn.role, "content": content, "media": media}
        if turn.reasoning is not None:
            message["reasoning_content"] = self._text(turn.reasoning, speech)
        if turn.tool_calls:
            message["tool_calls"] = [self._call(call) for call in turn.tool_calls]
        if turn.role == "tool":
            message |= self._answers(index)
        return message

    def _content(self, turn: Turn, speech: bool) -> tuple[str, str]:
        written, media, text = "", "", ""
        # Neighbouring texts are joined first, so that two halves of a control token are seen.
        for part in (*turn.parts, None):
            if isinstance(part, Text):
                text += part.text
                continue
            written, text = written + self._text(text, speech), ""
            if part is not None:
                char = self._new(self._media, _MEDIA)
                self._media[char] = Shown(part, turn)
                written, media = written + char, media + char
        return written, media

    def _call(self, call: ToolCall) -> dict[str, Any]:
        arguments = self._protected(call.arguments, True)
        said = {"type": "function", "function": {"name": self._text(call.name, True), "arguments": arguments}}
        return said if call.id is None else {"id": call.id, **said}

    def _answers(self, index: int) -> dict[str, Any]:
        """Says which call a tool turn answers: the n-th turn after the assistant's, the n-th call."""
        turns, before, at = self._conversation.turns, 0, self._conversation.parent(index)
        while at >= 0 and turns[at].role == "tool":
            before, at = before + 1, self._conversation.parent(at)
        calls = turns[at].tool_calls if at >= 0 else ()
        name = turns[index].name
        call = calls[before] if before < len(calls) else None
        said = {} if name is None else {"name": self._text(name, False)}
        if call is not None:
            said.setdefault("name", self._text(call.name, False))
            if call.id is not None:
                said["tool_call_id"] = call.id
        return said

    def _protected(self, value: Any, speech: bool) -> Any:
        if isinstance(value, str):
            return self._text(value, speech)
        if isinstance(value, Mapping):
            return {self._protected(key, speech): self._protected(item, speech) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._protected(item, speech) for item in value]
        if value is None or type(value) in (bool, int, float):
            return value
        # A row of Parquet can hold dates and the like; a template, code of a stranger's, gets no object with methods.
        return self._text(str(value), speech)

    def _text(self, text: str, speech: bool) -> str:
        # An assistant may say <think> or <tool_call>: what isn't special is part of how its model speaks.
        watch = self._guard.speech if speech else self._guard.other
        safe = watch.pattern(text).sub(lambda match: self._literal(match[0]), text)
        tokenizer = self._guard.tokenizer
        if tokenizer.normalizes and tokenizer.hides_control(_SPLIT.sub("", safe)):
            return self._literal(text)
        return safe

    def _literal(self, text: str) -> str:
        if text not in self._literal_of:
            char = self._new(self._literals, _LITERAL)
            self._literals[char] = text
            self._literal_of[text] = char
        return self._literal_of[text]

    def _new(self, table: Mapping[str, Any], plane: int) -> str:
        if len(table) > _MOST:
            raise DataError(f"{self._conversation.id}: more than {_MOST} media or control tokens in one conversation")
        return chr(plane + len(table))
