"""The values that flow from a data row to a training step."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mmsft.errors import DataError

PREVIOUS: Final = -1
"""`Turn.parent`: the turn answers the one before it in the conversation."""
ROOT: Final = -2
"""`Turn.parent`: the turn begins a thread of its own."""

Role: TypeAlias = Literal["system", "user", "assistant", "tool"]
Record: TypeAlias = Mapping[str, Any]
"""One row of a data source, as its file holds it."""

Ints: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float32]


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
    """

    role: Role
    parts: tuple[Part, ...]
    weight: float = 1.0
    parent: int = PREVIOUS
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    name: str | None = None

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

    @staticmethod
    def _path(leaf: int, parents: list[int]) -> tuple[int, ...]:
        path = []
        while leaf != ROOT:
            path.append(leaf)
            leaf = parents[leaf]
        return tuple(reversed(path))


@dataclass(frozen=True, slots=True)
class Grid:
    """How many features a medium gives: frames (t) × rows (h) × columns (w)."""

    t: int
    h: int
    w: int

    @property
    def count(self) -> int:
        """Number of features."""
        return self.t * self.h * self.w


@dataclass(frozen=True, slots=True)
class Targets:
    """What is learned and where, one entry a target; apart from the tokens, since a branch point has several.

    Attributes:
        position: [N] index of the token whose output predicts the target. Shifted here and nowhere else.
        token: [N] id to predict.
        weight: [N] weight in the loss.
    """

    position: Ints
    token: Ints
    weight: Floats

    def __len__(self) -> int:
        return len(self.position)


@dataclass(frozen=True, slots=True)
class Placed:
    """A medium and the tokens that its features replace.

    Attributes:
        media: what to load.
        slots: [S] token indices, in the order of the features.
    """

    media: Media
    slots: Ints


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of tokens of an `Encoded` that continues another one: a node of the token tree.

    Attributes:
        start: first token.
        end: one past the last token.
        parent: index of the segment that it continues, or -1.
    """

    start: int
    end: int
    parent: int = -1


def subtree_ends(segments: Sequence[Segment]) -> list[int]:
    """Returns for each segment one past the last token of its subtree; segments stand as a walk in depth meets them."""
    ends = [segment.end for segment in segments]
    for index in range(len(segments) - 1, -1, -1):
        parent = segments[index].parent
        if parent >= 0:
            ends[parent] = max(ends[parent], ends[index])
    return ends


@dataclass(frozen=True, slots=True)
class Encoded:
    """One conversation as tokens: a tree of segments; a dialogue is one segment.

    For an encoder–decoder the roots are what the encoder reads, each with the replies that the decoder writes to it.

    Attributes:
        id: the conversation's id.
        input_ids: [T]; the id at a medium's slot has no meaning.
        positions: [T] position of each token in its own thread.
        segments: parents before children, together all of the T tokens.
        targets: what is learned, positions into `input_ids`.
        media: media in the order of their slots.
        source: number of the recipe's source it comes from.
        note: what the ledger is to say of how the row is used, or empty.
        left_out: threads of the conversation that were too long.
        rows: ids of all conversations of which it is joined; empty = it is one. Their `id` then quotes the first few.
    """

    id: str
    input_ids: Ints
    positions: Ints
    segments: tuple[Segment, ...]
    targets: Targets
    media: tuple[Placed, ...]
    source: int = 0
    note: str = ""
    left_out: int = 0
    rows: tuple[str, ...] = ()

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of all conversations in it."""
        return self.rows or (self.id,)

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def two_sided(self) -> bool:
        """Whether it is an encoder–decoder's: there a reply doesn't continue its prompt, but counts from 0 again."""
        return any(segment.parent >= 0 and self.positions[segment.start] == 0 for segment in self.segments)


@dataclass(frozen=True, slots=True)
class MediaGroup:
    """Distinct media of one modality and one shape.

    Attributes:
        tensors: what `Modality.collate` made of them, first dimension N.
        grid: the features that each of them gives.
        keys: [N] the media, for errors and caches.
    """

    tensors: Mapping[str, Tensor]
    grid: Grid
    keys: tuple[Media, ...]


@dataclass(frozen=True, slots=True)
class MediaUse:
    """One appearance of a medium in a row: item `index` of group `group` fills the next `count` slots."""

    group: int
    index: int
    count: int
    row: int


@dataclass(frozen=True, slots=True)
class MediaBatch:
    """All media of one modality in a batch; a medium that appears twice is there once.

    Attributes:
        groups: the distinct media.
        uses: appearances, in the order of their slots.
        slots: [S] indices into the flattened [B·T] tokens, those of the encoder if there is one.
        tokens: [S] what fills them: indices into the tokens of all groups' media behind one another.
    """

    groups: tuple[MediaGroup, ...]
    uses: tuple[MediaUse, ...]
    slots: Tensor
    tokens: Tensor


@dataclass(frozen=True, slots=True)
class BatchTargets:
    """The targets of a batch.

    Attributes:
        at: [N] index into the flattened [B·T] tokens whose output predicts the target.
        token: [N] id to predict.
        weight: [N] weight in the loss, fp32.
        source: [N] number of the recipe's source.
    """

    at: Tensor
    token: Tensor
    weight: Tensor
    source: Tensor


@dataclass(frozen=True, slots=True)
class Pack:
    """Which tokens of a sequence of trees see which; each tree's segments stand in the order of a walk in depth.

    In that order a segment's descendants follow it without a gap, so that one number a token says it all: token k is
    seen by token q if k ≤ q < until[k].

    Attributes:
        segments: of all trees, together all T tokens, parents before children.
        until: [T] int64, for each token one past the last descendant of its segment.
    """

    segments: tuple[Segment, ...]
    until: Tensor


@dataclass(frozen=True, slots=True)
class Prompts:
    """What the encoder of an encoder–decoder reads, padded at the right.

    Attributes:
        input_ids: [E, S] int64; padding and media slots hold an id without meaning.
        mask: [E, S] bool, False at padding.
        of: [B] int64, the prompt that each of the batch's rows replies to.
    """

    input_ids: Tensor
    mask: Tensor
    of: Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """What goes through the model together: whole trees behind one another, or threads that are padded to one length.

    Threads are padded at the right for training, at the left for generation. Those of an encoder–decoder are replies.

    Attributes:
        ids: one a tree or thread; that of a tree of many rows quotes the first few.
        input_ids: [B, T] int64; padding and media slots hold an id without meaning.
        positions: [B, T] int64 position in the thread; 0 at padding.
        mask: [B, T] bool, False at padding: the id of a pad token decides nothing.
        targets: what is learned; empty for generation.
        media: modality → its media.
        pack: which tokens see which in a pack of trees, where B is 1 and nothing is padded; None = padded threads.
        prompts: what an encoder reads, once for all replies to it; None = there is no encoder.
        rows: ids of all rows in it, each once; empty = `ids` has them.
    """

    ids: tuple[str, ...]
    input_ids: Tensor
    positions: Tensor
    mask: Tensor
    targets: BatchTargets
    media: Mapping[str, MediaBatch]
    pack: Pack | None = None
    prompts: Prompts | None = None
    rows: tuple[str, ...] = ()

    def map(self, move: Callable[[Tensor], Tensor]) -> "Batch":
        """Returns the batch with `move` applied to each tensor, e.g. to bring it to a device."""
        targets = self.targets
        return replace(
            self,
            input_ids=move(self.input_ids),
            positions=move(self.positions),
            mask=move(self.mask),
            targets=BatchTargets(move(targets.at), move(targets.token), move(targets.weight), move(targets.source)),
            media={name: _map_media(media, move) for name, media in self.media.items()},
            pack=self.pack and Pack(self.pack.segments, move(self.pack.until)),
            prompts=self.prompts and Prompts(*map(move, (self.prompts.input_ids, self.prompts.mask, self.prompts.of))),
        )


def _map_media(media: MediaBatch, move: Callable[[Tensor], Tensor]) -> MediaBatch:
    groups = tuple(
        replace(group, tensors={name: move(tensor) for name, tensor in group.tensors.items()}) for group in media.groups
    )
    return MediaBatch(groups, media.uses, move(media.slots), move(media.tokens))
