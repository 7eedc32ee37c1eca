"""Makes a batch of encoded rows, trees packed or threads padded, with each distinct medium in it once."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from mmsft.data.groups import merged
from mmsft.data.media_reader import Kept, Loaded, MediaReader
from mmsft.data.prefix import lay_out
from mmsft.modalities.spec import Modality
from mmsft.types import (
    Batch,
    BatchTargets,
    Context,
    Encoded,
    Grid,
    Group,
    Ints,
    Media,
    MediaBatch,
    MediaGroup,
    MediaUse,
    Pack,
    Prompts,
    Stored,
    subtree_ends,
)

Question: TypeAlias = tuple[Media, tuple[int, ...]]
"""A medium, and what its adapter reads of what is asked about it."""


def collate(
    threads: Sequence[Encoded], reader: MediaReader, loaded: Loaded, side: Literal["left", "right"] = "right"
) -> Batch:
    """Pads threads to one length; for an encoder–decoder prompts to one, and replies to another.

    Args:
        threads: chains, i.e. one segment each; or trees of prompts with their replies.
        reader: the model's modalities.
        loaded: every medium of the threads.
        side: where padding goes: right to train, left to generate. An encoder's is always at the right, since some
            count positions from a row's beginning.
    """
    if threads[0].two_sided:
        return _two_sided(threads, reader, loaded)
    width = max(len(thread) for thread in threads)
    starts = [row * width + (width - len(thread) if side == "left" else 0) for row, thread in enumerate(threads)]
    return _batch(threads, _behind(starts, threads), (len(threads), width), reader, loaded)


def pack(trees: Sequence[Encoded], reader: MediaReader, loaded: Loaded) -> Batch:
    """Puts trees behind one another, what several begin with once; arguments as of `collate`."""
    places, segments = lay_out(trees)
    batch = _batch(trees, places, (1, segments[-1].end), reader, loaded)
    lengths = [segment.end - segment.start for segment in segments]
    until = np.repeat(np.array(subtree_ends(segments), np.int64), lengths)
    return replace(batch, pack=Pack(segments, torch.from_numpy(until)))


def _two_sided(trees: Sequence[Encoded], reader: MediaReader, loaded: Loaded) -> Batch:
    """Pads prompts and replies apart, a prompt once however many reply to it."""
    sides: tuple[list[int], list[int]] = [], []
    for segment in (segment for tree in trees for segment in tree.segments):
        sides[segment.parent >= 0].append(segment.end - segment.start)
    read, written = ((len(lengths), max(lengths)) for lengths in sides)
    edge = read[0] * read[1]
    of: list[int] = []
    places: list[Ints] = []
    prompts = 0
    for tree in trees:
        place, rows = np.empty(len(tree), np.int64), {}
        for index, segment in enumerate(tree.segments):
            if segment.parent < 0:
                start = prompts * read[1]
                rows[index] = prompts
                prompts += 1
            else:
                start = edge + len(of) * written[1]
                of.append(rows[segment.parent])
            place[segment.start : segment.end] = start + np.arange(segment.end - segment.start)
        places.append(place)
    # Both behind one another, then cut apart.
    both = _batch(trees, places, (1, edge + written[0] * written[1]), reader, loaded)
    return replace(
        both,
        input_ids=both.input_ids[0, edge:].view(written),
        positions=both.positions[0, edge:].view(written),
        mask=both.mask[0, edge:].view(written),
        targets=replace(both.targets, at=both.targets.at - edge),
        prompts=Prompts(
            input_ids=both.input_ids[0, :edge].view(read),
            mask=both.mask[0, :edge].view(read),
            of=torch.tensor(of, dtype=torch.int64),
        ),
    )


def _behind(starts: Sequence[int], rows: Sequence[Encoded]) -> list[Ints]:
    """Returns where the tokens of rows lie that are written from their starts on."""
    return [start + np.arange(len(row)) for start, row in zip(starts, rows, strict=False)]


def _batch(
    rows: Sequence[Encoded], places: Sequence[Ints], shape: tuple[int, int], reader: MediaReader, loaded: Loaded
) -> Batch:
    """Writes the tokens of rows to their places among the flattened ones of a batch."""
    input_ids, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    mask = np.zeros(shape, bool)
    for place, row in zip(places, rows, strict=True):
        input_ids.reshape(-1)[place] = row.input_ids
        positions.reshape(-1)[place] = row.positions
        mask.reshape(-1)[place] = True
    targets, groups = _grouped(_targets(rows, places), rows)
    return Batch(
        ids=tuple(row.id for row in rows),
        input_ids=torch.from_numpy(input_ids),
        positions=torch.from_numpy(positions),
        mask=torch.from_numpy(mask),
        targets=targets,
        media=_media(rows, places, reader, loaded),
        rows=tuple(dict.fromkeys(id for row in rows for id in row.ids)),
        groups=groups,
    )


def _targets(rows: Sequence[Encoded], places: Sequence[Ints]) -> BatchTargets:
    at = [place[row.targets.position] for row, place in zip(rows, places, strict=True)]
    source = [np.full(len(row.targets), row.source, np.int64) for row in rows]
    return BatchTargets(
        at=torch.from_numpy(np.concatenate(at)),
        token=torch.from_numpy(np.concatenate([row.targets.token for row in rows])),
        weight=torch.from_numpy(np.concatenate([row.targets.weight for row in rows])),
        source=torch.from_numpy(np.concatenate(source)),
    )


def _grouped(targets: BatchTargets, rows: Sequence[Encoded]) -> tuple[BatchTargets, tuple[Group, ...]]:
    """Returns the targets with the numbers of their groups, and the groups; there may be none."""
    names = [[Group(row.source, value) for value in row.values] for row in rows]
    groups, number = merged(names, [row.targets.group for row in rows])
    return (replace(targets, group=torch.from_numpy(number)) if groups else targets), groups


def _media(
    rows: Sequence[Encoded], places: Sequence[Ints], reader: MediaReader, loaded: Loaded
) -> dict[str, MediaBatch]:
    batches = {}
    for name in dict.fromkeys(placed.media.modality for row in rows for placed in row.media):
        used = [
            (number, placed) for number, row in enumerate(rows) for placed in row.media if placed.media.modality == name
        ]
        groups, place = groups_of([(placed.media, placed.context) for _, placed in used], reader, loaded)
        uses = tuple(
            MediaUse(*place[placed.media, placed.context], count=len(placed.slots), row=row) for row, placed in used
        )
        slots = np.concatenate([places[row][placed.slots] for row, placed in used])
        batches[name] = MediaBatch(groups, uses, torch.from_numpy(slots), tokens_of(groups, uses))
    return batches


def tokens_of(groups: Sequence[MediaGroup], uses: Sequence[MediaUse]) -> Tensor:
    """Returns `MediaBatch.tokens`; media of one group give as many tokens each."""
    each = {use.group: use.count for use in uses}
    starts = [0, *accumulate(len(group) * each[number] for number, group in enumerate(groups))]
    return torch.cat([starts[use.group] + use.index * use.count + torch.arange(use.count) for use in uses])


def groups_of(
    questions: Sequence[Question], reader: MediaReader, loaded: Loaded
) -> tuple[tuple[MediaGroup, ...], dict[Question, tuple[int, int]]]:
    """Puts media of one modality together by grid and shape, each once, and each question about one once.

    Args:
        questions: media, with what their adapter reads of what is asked about them.
        reader: the model's modalities.
        loaded: every medium of these.

    Returns:
        The groups, and for each question its group and where its tokens are among those of the group.
    """
    members: dict[tuple[Grid, tuple[tuple[str, torch.Size], ...]], list[Question]] = {}
    for question in dict.fromkeys(questions):
        medium = question[0]
        members.setdefault((reader.grid(medium), _shapes(loaded[medium])), []).append(question)
    groups, place = [], {}
    for number, ((grid, _), asked) in enumerate(members.items()):
        media = list(dict.fromkeys(medium for medium, _ in asked))
        group = _group(grid, media, reader.modality(media[0]), loaded)
        reads = media[0].modality in reader.contexts
        groups.append(replace(group, context=_context(asked, media)) if reads else group)
        place.update({question: (number, index) for index, question in enumerate(asked)})
    return tuple(groups), place


def _context(questions: Sequence[Question], media: Sequence[Media]) -> Context:
    width = max(1, *(len(context) for _, context in questions))
    ids, mask = np.zeros((len(questions), width), np.int64), np.zeros((len(questions), width), bool)
    for row, (_, context) in enumerate(questions):
        ids[row, : len(context)] = context
        mask[row, : len(context)] = True
    number = {medium: index for index, medium in enumerate(media)}
    of = torch.tensor([number[medium] for medium, _ in questions])
    return Context(torch.from_numpy(ids), torch.from_numpy(mask), of)


def _shapes(item: Mapping[str, Tensor] | Kept) -> tuple[tuple[str, torch.Size], ...]:
    """Returns what media of one group share: nothing where there is a store, or a group would show what is in it."""
    return () if isinstance(item, Kept) else tuple((name, tensor.shape) for name, tensor in item.items())


def _group(grid: Grid, media: Sequence[Media], modality: Modality, loaded: Loaded) -> MediaGroup:
    kept, whole = [], []
    for medium in media:
        item = loaded[medium]
        if isinstance(item, Kept):
            kept.append(item)
        else:
            whole.append(item)
    if whole:
        return MediaGroup(modality.collate(whole), grid, tuple(media))
    known = [item.features for item in kept if item.features is not None]
    fresh = [item for item in kept if item.features is None]
    behind = iter(range(len(known), len(kept)))
    ahead = iter(range(len(known)))
    stored = Stored(
        values=torch.stack(known) if known else None,
        fresh=tuple(modality.collate([item.tensors]) for item in fresh),
        digests=tuple(item.digest for item in fresh),
        order=torch.tensor([next(behind if item.features is None else ahead) for item in kept]),
    )
    return MediaGroup({}, grid, tuple(media), stored)
