"""What becomes of a conversation that is too long: its last turns go, its media are read smaller, or it stays."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from mmsft.data.media_reader import Reading
from mmsft.data.shrink import shrunk
from mmsft.data.trim import trimmed
from mmsft.errors import LeftOut, MmsftError
from mmsft.types import Conversation, Media

OverLong: TypeAlias = Literal["trim", "shrink", "drop", "error"]


class TooLong(LeftOut):
    """A thread has more tokens than the recipe's `length`."""


class Unfit(MmsftError):
    """A thread has more tokens than the recipe's `length`, and the recipe says that none may."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Fitted:
    """A conversation of which threads were too long.

    Attributes:
        conversation: as it is now; it may still have such threads, to be dropped.
        note: what the ledger is to say of it; empty where it is as it was.
        cut: turns that are left out.
        shrunk: media that are read smaller.
        refused: paths of threads whose media can't be read so small that they fit, and why.
    """

    conversation: Conversation
    note: str = ""
    cut: int = 0
    shrunk: int = 0
    refused: Mapping[tuple[int, ...], str] = field(default_factory=dict)

    def explained(self, path: tuple[int, ...], error: TooLong) -> TooLong:
        """Returns a thread's error with what was tried in vain."""
        why = self.refused.get(path)
        return TooLong(f"{error}; {why}") if why else error


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a thread may be, and what there is to do about it.

    Attributes:
        length: most tokens of a thread.
        measure: tokens of a conversation's longest thread.
        readings: how a medium can be read, as it is first, then to fewer and fewer tokens.
    """

    length: int
    measure: Callable[[Conversation], int]
    readings: Callable[[Media], Sequence[Reading]]

    def fits(self, conversation: Conversation) -> bool:
        """Tells whether none of a conversation's threads is too long."""
        return self.measure(conversation) <= self.length

    def shrunk(self, whole: Conversation, paths: Sequence[tuple[int, ...]], why: str = "") -> Fitted:
        """Returns a conversation with the media of threads that are too long read smaller."""
        small = shrunk(whole, paths, self.readings, self.measure, self.length)
        note = f"{small.note()}: {why}" if small.sizes else ""
        return Fitted(small.conversation, note, shrunk=len(small.sizes), refused=small.refused)

    def fitted(
        self, whole: Conversation, long: Mapping[tuple[int, ...], Sequence[int]], too_long: OverLong, first: TooLong
    ) -> Fitted:
        """Returns a conversation as a recipe would have it.

        Args:
            whole: a tree of turns.
            long: the paths of the threads that are too long, each with the turns of it that are learned.
            too_long: the recipe's choice.
            first: what is said of the first of these threads.

        Raises:
            Unfit: the choice is ``error``.
        """
        if too_long == "error":
            raise Unfit(f"{first}, or set too_long to trim, shrink or drop")
        if too_long == "shrink":
            return self.shrunk(whole, list(long), str(first))
        if too_long == "drop":
            return Fitted(whole)
        kept = trimmed(whole, long, self.fits)
        cut = len(whole.turns) - len(kept.turns)
        note = f"its last turns are left out, {cut} of {len(whole.turns)}: {first}" if cut else ""
        return Fitted(kept, note, cut=cut)
