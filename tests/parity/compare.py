"""Loss and gradients of the same trees in one pack, padded together, and thread by thread."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from mmsft.data import prefix
from mmsft.data.collate import collate, pack
from mmsft.data.media_reader import Loaded, MediaReader
from mmsft.data.tree import threads
from mmsft.model import attention, fusion
from mmsft.model.fusion import MultimodalModel
from mmsft.objectives import sft
from mmsft.types import Batch, Encoded

TEXT = MediaReader({})

EXACT = 1e-5
"""Of the loss, and of a gradient's norm, or 1 % of the whole gradient's where that is larger.

A pack adds in another order than its threads, which in fp32 makes up to 3e-6. A gradient that is zero by the equations,
as that of a bias of keys, is nothing but such rounding.
"""


class Learned(NamedTuple):
    """What a step would learn from."""

    loss: float
    gradients: Mapping[str, Tensor]


def packed(trees: Sequence[Encoded], reader: MediaReader = TEXT, loaded: Loaded | None = None) -> list[Batch]:
    return [pack(trees, reader, loaded or {})]


def padded(trees: Sequence[Encoded], reader: MediaReader = TEXT, loaded: Loaded | None = None) -> list[Batch]:
    return [collate([thread for tree in trees for thread in threads(tree)], reader, loaded or {})]


def apart(trees: Sequence[Encoded], reader: MediaReader = TEXT, loaded: Loaded | None = None) -> list[Batch]:
    """Returns each thread in a batch of its own, each target in the first thread that says it."""
    return [collate([thread], reader, loaded or {}) for tree in trees for thread in threads(tree)]


def learned(model: MultimodalModel, batches: Sequence[Batch]) -> Learned:
    model.zero_grad()
    losses = [sft(model, batch, sources=1) for batch in batches]
    count = sum(float(loss.count) for loss in losses)
    total = torch.stack([loss.sum for loss in losses]).sum() / count
    total.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return Learned(total.item(), gradients)


def difference(one: Learned, other: Learned) -> float:
    """Returns the largest relative difference between the losses, or two gradients of a parameter."""
    assert one.gradients.keys() == other.gradients.keys()
    assert any(bool(gradient.any()) for gradient in other.gradients.values())
    whole = float(torch.cat([gradient.flatten() for gradient in other.gradients.values()]).norm())
    differences = [
        float((one.gradients[name] - theirs).norm() / max(float(theirs.norm()), whole / 100))
        for name, theirs in other.gradients.items()
    ]
    return max(abs(one.loss - other.loss) / abs(other.loss), *differences)


@contextmanager
def blocks_of(size: int) -> Iterator[None]:
    """Has packs cut into blocks of so many tokens, for trees that one block would hold."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fusion, "Trees", partial(attention.Trees, size=size))
        yield


@contextmanager
def shared_from(tokens: int) -> Iterator[None]:
    """Has trees of a pack share what so many tokens begin."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefix, "LEAST", tokens)
        yield
