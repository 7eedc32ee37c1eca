"""The tokens of one thread while they are written, piece by piece, each with its weight in the loss."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple, TypeAlias

import numpy as np

from mmsft.adapters.spec import Layout, Slots
from mmsft.data import tree
from mmsft.data.messages import Guard, Messages, Shown
from mmsft.data.tokens import After
from mmsft.errors import DataError
from mmsft.types import Encoded, Ints, Media, Placed, Segment, Targets

Contexts: TypeAlias = Mapping[str, Callable[[str], tuple[int, ...]]]
"""By modality, for adapters that read what is asked about a medium: what they read of a text, as ids."""

_NO_TURN: Final = -1


class Credit(NamedTuple):
    """How much tokens weigh in the loss, and the learned turn that they belong to."""

    weight: float = 0.0
    turn: int = _NO_TURN


CONTEXT: Final = Credit()


@dataclass(slots=True)
class _Run:
    """Neighbouring tokens of one credit.

    Attributes:
        credit: theirs.
        ids: what they are, once `text` is tokenised.
        text: what they say.
        after: what that follows.
        first: the credit of the first one where that differs.
        start: where they begin, once all before them are tokenised.
    """

    credit: Credit
    ids: list[int] = field(default_factory=list)
    text: str = ""
    after: After = "start"
    first: Credit | None = None
    start: int = 0


class Strand:
    """Writes rendered text as tokens, literals as text, media as slots.

    Args:
        messages: knows what the characters in the text stand for.
        guard: with the tokenizer.
        slots: what a medium occupies.
        contexts: what is read of the turns in which media stand.
    """

    def __init__(self, messages: Messages, guard: Guard, slots: Callable[[Media], Layout], contexts: Contexts) -> None:
        self._messages = messages
        self._guard = guard
        self._slots = slots
        self._contexts = contexts
        self._waiting: list[_Run] = []
        self._runs: list[_Run] = []
        self._media: list[tuple[Shown, list[_Run]]] = []  # with their slots
        self._after: After = "start"

    def write(self, text: str, credit: Credit = CONTEXT, first: Credit | None = None) -> None:
        """Writes a stretch of rendered text; `first` is the credit of its first token where that differs."""
        begin = len(self._runs)
        for piece in self._messages.pieces(text):
            if isinstance(piece, Shown):
                self._place(piece)
            else:
                self._say(*piece, credit)
        if begin < len(self._runs):
            self._runs[begin].first = first

    def tokens(self, ids: Sequence[int], credit: Credit = CONTEXT) -> None:
        """Writes tokens as they are; text that follows them is tokenised as if they weren't there."""
        self._runs.append(_Run(credit, list(ids)))

    def tokenise(self) -> None:
        """Tokenises what was written until now, as `encoded` does if need be."""
        for run in self._waiting:
            run.ids = self._guard.tokenizer.text(run.text, run.after)
        self._waiting.clear()

    def encoded(self, id: str, source: int = 0, earlier: Sequence[Encoded] = ()) -> Encoded:
        """Returns the thread; what belongs to no turn and stands in an `earlier` thread already isn't learned again."""
        self.tokenise()
        tokens: list[int] = []
        for run in self._runs:
            run.start = len(tokens)
            tokens += run.ids
        ids = np.array(tokens, np.int64)
        thread = Encoded(
            id=id,
            input_ids=ids,
            positions=np.arange(len(ids)),
            segments=(Segment(0, len(ids)),),
            targets=self._targets(ids),
            media=tuple(Placed(shown.media, _places(slots), self._asked(shown)) for shown, slots in self._media),
            source=source,
        )
        if not earlier:
            return thread
        depth = max(tree.shared(thread, other) for other in earlier)
        return replace(thread, targets=self._targets(ids, depth))

    def _say(self, text: str, literal: bool, credit: Credit) -> None:
        # What follows a medium is tokenised as behind a placeholder token: so it is by the processors of other tools.
        run = _Run(credit, text=text, after=self._after)
        if literal:
            run.ids = self._guard.tokenizer.literal(text)
        else:
            self._waiting.append(run)
        self._runs.append(run)
        self._after = "text"

    def _asked(self, shown: Shown) -> tuple[int, ...]:
        """Returns what a medium's adapter reads of the turn that it stands in."""
        read = self._contexts.get(shown.media.modality)
        if read is None:
            return ()
        if shown.turn.role == "assistant":
            raise DataError(
                f"{shown.media} stands in an assistant's turn, and its adapter would read what is still to be said; "
                "move it into a user's turn, or take an adapter that doesn't read what is asked"
            )
        return read(shown.turn.text.strip())

    def _place(self, shown: Shown) -> None:
        """Writes a medium's slots and the text among them, none of it learned."""
        slots: list[_Run] = []
        for part in self._slots(shown.media):
            if isinstance(part, Slots):
                slots.append(_Run(CONTEXT, [0] * part.count))
                self._runs.append(slots[-1])
                self._after = "token"
            else:
                for text, literal in self._guard.split(part.text):
                    self._say(text, literal, CONTEXT)
        self._media.append((shown, slots))

    def _targets(self, ids: Ints, known: int = 0) -> Targets:
        """Returns what is learned; of the first `known` tokens only what belongs to a turn."""
        weight = np.zeros(len(ids), np.float32)
        for run in self._runs:
            if run.credit.weight:
                start = run.start if run.credit.turn != _NO_TURN else max(run.start, known)
                weight[start : run.start + len(run.ids)] = run.credit.weight
            if run.first is not None and run.ids:
                weight[run.start] = run.first.weight
        # The first token has nothing before it that could predict it.
        weight[:1] = 0
        at = (weight > 0).nonzero()[0]
        return Targets(at - 1, ids[at], weight[at])


def _places(slots: list[_Run]) -> Ints:
    return np.array([run.start + at for run in slots for at in range(len(run.ids))], np.int64)
