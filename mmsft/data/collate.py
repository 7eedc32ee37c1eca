"""Makes a batch of encoded rows, trees packed or threads padded, with each distinct medium in it once."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mmsft.data.media_reader import MediaReader
from mmsft.types import (
    Batch,
    BatchTargets,
    Encoded,
    Grid,
    Media,
    MediaBatch,
    MediaGroup,
    MediaUse,
    Pack,
    Segment,
    subtree_ends,
)

Loaded = Mapping[Media, Mapping[str, Tensor]]


def collate(
    threads: Sequence[Encoded], reader: MediaReader, loaded: Loaded, side: Literal["left", "right"] = "right"
) -> Batch:
    """Pads threads to one length.

    Args:
        threads: chains, i.e. one segment each.
        reader: the model's modalities.
        loaded: every medium of the threads.
        side: where padding goes: right to train, left to generate.
    """
    width = max(len(thread) for thread in threads)
    starts = [row * width + (width - len(thread) if side == "left" else 0) for row, thread in enumerate(threads)]
    return _batch(threads, starts, (len(threads), width), reader, loaded)


def pack(trees: Sequence[Encoded], reader: MediaReader, loaded: Loaded) -> Batch:
    """Puts trees behind one another; arguments as of `collate`."""
    starts = [0, *accumulate(len(tree) for tree in trees)]
    batch = _batch(trees, starts[:-1], (1, starts[-1]), reader, loaded)
    segments: list[Segment] = []
    for start, tree in zip(starts, trees, strict=False):
        first = len(segments)
        segments += [
            Segment(start + segment.start, start + segment.end, segment.parent + first if segment.parent >= 0 else -1)
            for segment in tree.segments
        ]
    lengths = [segment.end - segment.start for segment in segments]
    until = np.repeat(np.array(subtree_ends(segments), np.int64), lengths)
    return replace(batch, pack=Pack(tuple(segments), torch.from_numpy(until)))


def _batch(
    rows: Sequence[Encoded], starts: Sequence[int], shape: tuple[int, int], reader: MediaReader, loaded: Loaded
) -> Batch:
    """Writes rows from their starts on into the flattened tokens of a batch."""
    input_ids, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    mask = np.zeros(shape, bool)
    for start, row in zip(starts, rows, strict=True):
        where = slice(start, start + len(row))
        input_ids.reshape(-1)[where] = row.input_ids
        positions.reshape(-1)[where] = row.positions
        mask.reshape(-1)[where] = True
    return Batch(
        ids=tuple(row.id for row in rows),
        input_ids=torch.from_numpy(input_ids),
        positions=torch.from_numpy(positions),
        mask=torch.from_numpy(mask),
        targets=_targets(rows, starts),
        media=_media(rows, starts, reader, loaded),
    )


def _targets(threads: Sequence[Encoded], starts: Sequence[int]) -> BatchTargets:
    at = [thread.targets.position + start for thread, start in zip(threads, starts, strict=True)]
    source = [np.full(len(thread.targets), thread.source, np.int64) for thread in threads]
    return BatchTargets(
        at=torch.from_numpy(np.concatenate(at)),
        token=torch.from_numpy(np.concatenate([thread.targets.token for thread in threads])),
        weight=torch.from_numpy(np.concatenate([thread.targets.weight for thread in threads])),
        source=torch.from_numpy(np.concatenate(source)),
    )


def _media(
    threads: Sequence[Encoded], starts: Sequence[int], reader: MediaReader, loaded: Loaded
) -> dict[str, MediaBatch]:
    batches = {}
    for name in dict.fromkeys(placed.media.modality for thread in threads for placed in thread.media):
        used = [
            (row, placed)
            for row, thread in enumerate(threads)
            for placed in thread.media
            if placed.media.modality == name
        ]
        groups, place = _groups(dict.fromkeys(placed.media for _, placed in used), reader, loaded)
        uses = tuple(MediaUse(*place[placed.media], count=len(placed.slots), row=row) for row, placed in used)
        slots = np.concatenate([placed.slots + starts[row] for row, placed in used])
        batches[name] = MediaBatch(groups, uses, torch.from_numpy(slots))
    return batches


def _groups(
    media: Mapping[Media, None], reader: MediaReader, loaded: Loaded
) -> tuple[tuple[MediaGroup, ...], dict[Media, tuple[int, int]]]:
    """Puts media of one grid and one shape together; returns the groups and where each medium is in them."""
    members: dict[tuple[Grid, tuple[tuple[str, torch.Size], ...]], list[Media]] = {}
    for medium in media:
        shapes = tuple((name, tensor.shape) for name, tensor in loaded[medium].items())
        members.setdefault((reader.grid(medium), shapes), []).append(medium)
    groups, place = [], {}
    for number, ((grid, _), items) in enumerate(members.items()):
        tensors = reader.modality(items[0]).collate([loaded[item] for item in items])
        groups.append(MediaGroup(tensors, grid, tuple(items)))
        place.update({item: (number, index) for index, item in enumerate(items)})
    return tuple(groups), place
