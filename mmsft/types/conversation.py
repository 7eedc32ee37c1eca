"""A data row and the conversation that it is read as."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, TypeAlias

from mmsft.errors import DataError

PREVIOUS: Final = -1
"""`Turn.parent`: the turn answers the one before it in the conversation."""
ROOT: Final = -2
"""`Turn.parent`: the turn begins a thread of its own."""

Role: TypeAlias = Literal["system", "user", "assistant", "tool"]
Record: TypeAlias = Mapping[str, Any]
"""One row of a data source, as its file holds it."""


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of text inside a turn."""

    text: str


@dataclass(frozen=True, slots=True)
class Media:
    """A picture, a sound, … inside a turn.

    Attributes:
        modality: the name of the tower that reads it.
        ref: a path (relative to the source's media root) or the file's bytes.
        options: what to read of the file, e.g. a clip's start and end, as sorted (name, value) pairs.
    """

    modality: str
    ref: str | bytes
    options: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        return f"<{self.modality}: {self.ref if isinstance(self.ref, str) else f'{len(self.ref)} bytes'}>"


Part: TypeAlias = Text | Media


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that an assistant turn makes: a function's name and its arguments."""

    name: str
    arguments: Mapping[str, Any]
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """What one speaker says at one point of a conversation.

    Attributes:
        role: who speaks.
        parts: text and media in the order in which they are said.
        weight: weight of its tokens in the loss where the recipe learns this turn; 0 = context only.
        parent: index of the turn that it answers, `PREVIOUS` or `ROOT`. Turns with one parent are branches.
        reasoning: the thinking before an assistant's answer, which templates render apart from it.
        tool_calls: the functions that an assistant turn calls.
        name: the function that a tool turn answers for.
        rank: of an answer among several to one prompt: 0 is the best; None = they aren't compared.
        tags: as of a conversation, of this turn and what answers it, as sorted (name, value) pairs.
    """

    role: Role
    parts: tuple[Part, ...]
    weight: float = 1.0
    parent: int = PREVIOUS
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    name: str | None = None
    rank: int | None = None
    tags: tuple[tuple[str, str], ...] = ()

    @property
    def text(self) -> str:
        """The turn's text without its media."""
        return "".join(part.text for part in self.parts if isinstance(part, Text))

    @property
    def media(self) -> tuple[Media, ...]:
        """The turn's media, in order."""
        return tuple(part for part in self.parts if isinstance(part, Media))


@dataclass(frozen=True, slots=True)
class Conversation:
    """A tree of turns; a plain dialogue is the tree with one branch.

    Attributes:
        id: where it comes from, e.g. ``mix.jsonl:1734``; every error quotes it.
        turns: parents before children.
        tags: columns of the row that the recipe keeps, e.g. the kind of a question, for scores per kind.
        tools: JSON schemas of the functions that the assistant may call.
        template_kwargs: extra variables for the chat template, e.g. ``enable_thinking``.

    Raises:
        DataError: there is no turn, or a turn's parent isn't an earlier turn.
    """

    id: str
    turns: tuple[Turn, ...]
    tags: Mapping[str, str] = field(default_factory=dict)
    tools: tuple[Mapping[str, Any], ...] = ()
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.turns:
            raise DataError(f"{self.id}: the conversation has no turns")
        for index, turn in enumerate(self.turns):
            if turn.parent not in (PREVIOUS, ROOT) and not 0 <= turn.parent < index:
                raise DataError(
                    f"{self.id}: turn {index} answers turn {turn.parent}; a parent must be an earlier turn "
                    f"(0 to {index - 1}), PREVIOUS or ROOT"
                )

    def parent(self, index: int) -> int:
        """Returns the index of the turn that turn `index` answers, or `ROOT`."""
        parent = self.turns[index].parent
        if parent == PREVIOUS:
            return index - 1 if index else ROOT
        return parent

    def threads(self) -> tuple[tuple[int, ...], ...]:
        """Returns the paths from a root to each leaf, as turn indices, in the order of the leaves."""
        parents = [self.parent(index) for index in range(len(self.turns))]
        leaves = sorted(set(range(len(parents))) - set(parents))
        return tuple(self._path(leaf, parents) for leaf in leaves)

    def tags_of(self, path: Sequence[int]) -> dict[str, str]:
        """Returns the tags along a path: a turn's go before those of what it answers."""
        return {**self.tags, **dict(tag for index in path for tag in self.turns[index].tags)}

    def chain(self, path: Sequence[int]) -> "Conversation":
        """Returns the turns along a path as a conversation of one thread."""
        turns = tuple(replace(self.turns[index], parent=PREVIOUS) for index in path)
        return replace(self, turns=turns, tags=self.tags_of(path))

    def ranked_pairs(self) -> tuple[tuple[int, int], ...]:
        """Returns (better, worse) of any two answers to one turn whose ranks differ, as turn indices."""
        answers = [index for index, turn in enumerate(self.turns) if turn.rank is not None]
        ranks = {index: self.turns[index].rank or 0 for index in answers}
        return tuple(
            (one, other)
            for one in answers
            for other in answers
            if self.parent(one) == self.parent(other) and ranks[one] < ranks[other]
        )

    @staticmethod
    def _path(leaf: int, parents: list[int]) -> tuple[int, ...]:
        path = []
        while leaf != ROOT:
            path.append(leaf)
            leaf = parents[leaf]
        return tuple(reversed(path))
