"""What goes through the model together."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from mmsft.types.conversation import Media
from mmsft.types.encoded import Grid, Segment


@dataclass(frozen=True, slots=True)
class Stored:
    """What a store of features knows of a group of N media; the others are encoded one by one.

    Alone, so that a medium's features don't depend, by their rounding, on what is encoded beside it.

    Attributes:
        values: [H, L, width] features of the media that are in the store; None = none is.
        fresh: for each of the others what `Modality.collate` made of it alone, first dimension 1.
        digests: their keys in the store.
        order: [N] where each medium of the group is among those in the store and, behind them, the others.
    """

    values: Tensor | None
    fresh: tuple[Mapping[str, Tensor], ...]
    digests: tuple[str, ...]
    order: Tensor


@dataclass(frozen=True, slots=True)
class Context:
    """What is asked about a group's media, for an adapter that reads it: each question makes tokens of its own.

    Attributes:
        ids: [Q, T] int64, what `Adapter.context` gave, padded at the right.
        mask: [Q, T] bool, False at padding.
        of: [Q] the group's medium that each is about.
    """

    ids: Tensor
    mask: Tensor
    of: Tensor


@dataclass(frozen=True, slots=True)
class MediaGroup:
    """Distinct media of one modality and, unless a store is used, one shape.

    Attributes:
        tensors: what `Modality.collate` made of them, first dimension N; empty if there is a store.
        grid: the features that each of them gives.
        keys: [N] the media, for errors.
        stored: what a store of features knows of them; None = there is none.
        context: what is asked about them; None = their adapter doesn't read it.
    """

    tensors: Mapping[str, Tensor]
    grid: Grid
    keys: tuple[Media, ...]
    stored: Stored | None = None
    context: Context | None = None

    def __len__(self) -> int:
        """Returns how often the adapter makes tokens: once a medium, or once a question about one."""
        return len(self.keys) if self.context is None else len(self.context.of)

    def key(self, index: int) -> Media:
        """Returns of which medium the tokens at `index` are."""
        return self.keys[index if self.context is None else int(self.context.of[index])]

    def map(self, move: Callable[[Tensor], Tensor]) -> "MediaGroup":
        """Returns the group with `move` applied to each tensor."""
        asked = self.context
        return replace(
            self,
            tensors=_map_all(self.tensors, move),
            stored=self.stored and _map_stored(self.stored, move),
            context=asked and Context(move(asked.ids), move(asked.mask), move(asked.of)),
        )


@dataclass(frozen=True, slots=True)
class MediaUse:
    """One appearance of a medium in a row: the tokens at `index` of group `group` fill the next `count` slots."""

    group: int
    index: int
    count: int
    row: int


@dataclass(frozen=True, slots=True)
class MediaBatch:
    """All media of one modality in a batch; a medium that appears twice is there once, and so is a question about it.

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


class Group(NamedTuple):
    """Rows whose loss is told together: those of one source with one value of a tag, empty where they have none."""

    source: int
    value: str


@dataclass(frozen=True, slots=True)
class BatchTargets:
    """The targets of a batch.

    Attributes:
        at: [N] index into the flattened [B·T] tokens whose output predicts the target.
        token: [N] id to predict.
        weight: [N] weight in the loss, fp32.
        source: [N] number of the recipe's source.
        group: [N] index into `Batch.groups`; None = there are none.
    """

    at: Tensor
    token: Tensor
    weight: Tensor
    source: Tensor
    group: Tensor | None = None

    def map(self, move: Callable[[Tensor], Tensor]) -> "BatchTargets":
        """Returns the targets with `move` applied to each tensor."""
        group = None if self.group is None else move(self.group)
        return BatchTargets(move(self.at), move(self.token), move(self.weight), move(self.source), group)


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
        groups: by which losses are told, beside those by source; empty = by none.
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
    groups: tuple[Group, ...] = ()

    def map(self, move: Callable[[Tensor], Tensor]) -> "Batch":
        """Returns the batch with `move` applied to each tensor, e.g. to bring it to a device."""
        return replace(
            self,
            input_ids=move(self.input_ids),
            positions=move(self.positions),
            mask=move(self.mask),
            targets=self.targets.map(move),
            media={name: _map_media(media, move) for name, media in self.media.items()},
            pack=self.pack and Pack(self.pack.segments, move(self.pack.until)),
            prompts=self.prompts and Prompts(*map(move, (self.prompts.input_ids, self.prompts.mask, self.prompts.of))),
        )


def _map_media(media: MediaBatch, move: Callable[[Tensor], Tensor]) -> MediaBatch:
    groups = tuple(group.map(move) for group in media.groups)
    return MediaBatch(groups, media.uses, move(media.slots), move(media.tokens))


def _map_stored(stored: Stored, move: Callable[[Tensor], Tensor]) -> Stored:
    values = None if stored.values is None else move(stored.values)
    fresh = tuple(_map_all(tensors, move) for tensors in stored.fresh)
    return Stored(values, fresh, stored.digests, move(stored.order))


def _map_all(tensors: Mapping[str, Tensor], move: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    return {name: move(tensor) for name, tensor in tensors.items()}
