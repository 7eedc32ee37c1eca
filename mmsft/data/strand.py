"""The tokens of one thread while they are written, piece by piece, each with its weight in the loss."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np

from mmsft.adapters.spec import Layout, Slots
from mmsft.data import tree
from mmsft.data.messages import Guard, Messages
from mmsft.data.tokens import After
from mmsft.types import Encoded, Media, Placed, Segment, Targets

_NO_TURN: Final = -1


class Credit(NamedTuple):
    """How much tokens weigh in the loss, and the learned turn that they belong to."""

    weight: float = 0.0
    turn: int = _NO_TURN


CONTEXT: Final = Credit()


class Strand:
    """Writes rendered text as tokens, literals as text, media as slots.

    Args:
        messages: knows what the characters in the text stand for.
        guard: with the tokenizer.
        slots: what a medium occupies.
    """

    def __init__(self, messages: Messages, guard: Guard, slots: Callable[[Media], Layout]) -> None:
        self._messages = messages
        self._guard = guard
        self._slots = slots
        self._ids: list[int] = []
        self._credits: list[tuple[int, int, Credit]] = []
        self._media: list[Placed] = []
        self._after: After = "start"

    def write(self, text: str, credit: Credit = CONTEXT, first: Credit | None = None) -> None:
        """Writes a stretch of rendered text; `first` is the credit of its first token where that differs."""
        begin = len(self._ids)
        for piece in self._messages.pieces(text):
            if isinstance(piece, Media):
                self._place(piece)
            else:
                self._say(*piece, credit)
        if first is not None and begin < len(self._ids):
            self._credits.append((begin, begin + 1, first))

    def tokens(self, ids: Sequence[int], credit: Credit = CONTEXT) -> None:
        """Writes tokens as they are; text that follows them is tokenised as if they weren't there."""
        if credit is not CONTEXT:
            self._credits.append((len(self._ids), len(self._ids) + len(ids), credit))
        self._ids += ids

    def encoded(self, id: str, source: int = 0, earlier: Sequence[Encoded] = ()) -> Encoded:
        """Returns the thread; what belongs to no turn and stands in an `earlier` thread already isn't learned again."""
        ids = np.array(self._ids, np.int64)
        weight, turn = np.zeros(len(ids), np.float32), np.full(len(ids), _NO_TURN)
        for start, stop, credit in self._credits:
            weight[start:stop], turn[start:stop] = credit
        # The first token has nothing before it that could predict it.
        weight[:1] = 0
        thread = Encoded(
            id=id,
            input_ids=ids,
            positions=np.arange(len(ids)),
            segments=(Segment(0, len(ids)),),
            targets=_targets(ids, weight),
            media=tuple(self._media),
            source=source,
        )
        if not earlier:
            return thread
        depth = max(tree.shared(thread, other) for other in earlier)
        weight[:depth][turn[:depth] == _NO_TURN] = 0
        return replace(thread, targets=_targets(ids, weight))

    def _say(self, text: str, literal: bool, credit: Credit) -> None:
        tokenizer = self._guard.tokenizer
        # What follows a medium is tokenised as behind a placeholder token: so it is by the processors of other tools.
        ids = tokenizer.literal(text) if literal else tokenizer.text(text, self._after)
        self.tokens(ids, credit)
        self._after = "text"

    def _place(self, media: Media) -> None:
        """Writes a medium's slots and the text among them, none of it learned."""
        slots: list[int] = []
        for part in self._slots(media):
            if isinstance(part, Slots):
                slots += range(len(self._ids), len(self._ids) + part.count)
                self._ids += [0] * part.count
                self._after = "token"
            else:
                for text, literal in self._guard.split(part.text):
                    self._say(text, literal, CONTEXT)
        self._media.append(Placed(media, np.array(slots, np.int64)))


def _targets(
    ids: np.ndarray[tuple[int], np.dtype[np.int64]], weight: np.ndarray[tuple[int], np.dtype[np.float32]]
) -> Targets:
    at = np.flatnonzero(weight > 0)
    return Targets(at - 1, ids[at], weight[at])
