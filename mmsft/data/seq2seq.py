"""What an encoder–decoder reads and writes: a prompt as its tokenizer wants it, and a reply that counts from 0."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import numpy as np

from mmsft.data import tree
from mmsft.data.pack import Padded
from mmsft.data.strand import CONTEXT, Credit, Strand
from mmsft.data.tokens import Tokenizer
from mmsft.errors import DataError
from mmsft.types import Encoded, Segment

_TRIAL: Final = "a"


class Around(NamedTuple):
    """What a tokenizer puts around a text.

    Attributes:
        before: ids before it.
        behind: ids behind it.
        opening: what those before it say.
        closing: what those behind it say.
    """

    before: list[int]
    behind: list[int]
    opening: str
    closing: str


@dataclass(frozen=True)
class Sides:
    """How an encoder–decoder is given its two texts.

    Attributes:
        start: id with which each of the decoder's rows begins.
        prompt: what stands around a text that the encoder reads, e.g. T5's ``</s>`` behind it.
        reply: what stands around a text that the decoder writes, e.g. BART's ``<s>`` and ``</s>``.
    """

    start: int
    prompt: Around
    reply: Around

    @classmethod
    def of(cls, tokenizer: Tokenizer, start: int) -> "Sides":
        """Asks the tokenizer what it puts around the text of each side."""
        hf: Any = tokenizer.hf
        prompt, reply = hf(_TRIAL)["input_ids"], hf(text_target=_TRIAL)["input_ids"]
        return cls(start, _around(prompt, tokenizer), _around(reply, tokenizer))

    def ask(self, strand: Strand, text: str) -> None:
        """Writes what the encoder reads; what a template puts around its text as the tokenizer would isn't doubled."""
        around = self.prompt
        strand.tokens([] if text.startswith(around.opening) else around.before)
        strand.write(text)
        strand.tokens([] if text.rstrip().endswith(around.closing) else around.behind)

    def template(self, source: str, prompt: str) -> str:
        """Returns a chat template whose prompts are what the encoder reads; for tools that add nothing to them.

        Args:
            source: the template's text.
            prompt: some prompt, as it writes it.
        """
        around = self.prompt
        opening = "" if prompt.startswith(around.opening) else f"{{{{- {around.opening!r} }}}}"
        closing = "" if prompt.rstrip().endswith(around.closing) else around.closing
        return f"{opening}{source}{{%- if add_generation_prompt %}}{{{{- {closing!r} }}}}{{%- endif %}}"

    def begin(self, strand: Strand, credit: Credit = CONTEXT) -> None:
        """Writes what every reply begins with; an answer is written behind it."""
        strand.tokens([self.start])
        strand.tokens(self.reply.before, credit)

    def answer(self, strand: Strand, context: str, said: str, end: str, credit: Credit) -> None:
        """Writes a reply, without the white space that templates put around it.

        Args:
            strand: a new one.
            context: the beginning of the reply that isn't learned.
            said: what is learned.
            end: the token with which the template ends it, or empty: then it ends as the tokenizer has it.
            credit: of what is learned.
        """
        self.begin(strand, CONTEXT if context else credit)
        strand.write(context.lstrip())
        strand.write(said.rstrip() if context else said.strip(), credit)
        if end:
            strand.write(end, credit)
        else:
            strand.tokens(self.reply.behind, credit)


def joined(prompt: Encoded, reply: Encoded) -> Encoded:
    """Returns a prompt and its reply as one thread of two segments.

    Raises:
        DataError: the reply has a medium.
    """
    if reply.media:
        raise DataError(
            f"{prompt.id}: an assistant's turn has {reply.media[0].media}, and an encoder-decoder writes text alone; "
            "move it into a user's turn, or give the assistant's a weight of 0"
        )
    at = len(prompt)
    return replace(
        prompt,
        input_ids=np.concatenate([prompt.input_ids, reply.input_ids]),
        positions=np.concatenate([prompt.positions, reply.positions]),
        segments=(Segment(0, at), Segment(at, at + len(reply), 0)),
        targets=replace(reply.targets, position=reply.targets.position + at),
    )


def by_prompt(threads: Sequence[Encoded], most: int) -> Iterator[list[int]]:
    """Yields the threads, by index, that reply to one prompt; so few that, padded, they have at most so many tokens.

    A prompt whose replies don't fit into one batch is read in several.
    """
    prompts: dict[int, list[int]] = {}
    for index, prompt in enumerate(tree.prompts(threads)):
        prompts.setdefault(prompt, []).append(index)
    for replies in prompts.values():
        replies.sort(key=lambda index: len(threads[index]), reverse=True)
        while replies:
            longest = shape(threads[replies[0]])
            count = max(1, (most - longest.read) // longest.width)
            yield replies[:count]
            replies = replies[count:]


def shape(encoded: Encoded) -> Padded:
    """Returns what prompts and their replies take in a batch; a thread of one side is as a reply to nothing."""
    lengths = [(segment.parent >= 0, segment.end - segment.start) for segment in encoded.segments]
    read, written = ([length for replies, length in lengths if replies is side] for side in (False, True))
    return Padded(len(written), max(written), len(read), max(read)) if written else Padded(len(read), max(read))


def _around(ids: list[int], tokenizer: Tokenizer) -> Around:
    plain = tokenizer.text(_TRIAL)
    at = next(at for at in range(len(ids)) if ids[at : at + len(plain)] == plain)
    before, behind = ids[:at], ids[at + len(plain) :]
    return Around(before, behind, tokenizer.decode(before), tokenizer.decode(behind))
