"""Reads what a stage's steps are made of, without decoding a medium."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from mmsft.config import StageConfig
from mmsft.data.encoding import Share
from mmsft.data.loader import Steps
from mmsft.errors import DataError
from mmsft.run.load import Run
from mmsft.run.steps import steps_of
from mmsft.types import Batch


class Shape(NamedTuple):
    """What a micro-batch is made of.

    Attributes:
        step: number of its step, counted from 0.
        micro: its number in this process's share of the step.
        tokens: padding included.
        targets: learned tokens.
        media: distinct media.
        slots: tokens that media fill.
    """

    step: int
    micro: int
    tokens: int
    targets: int
    media: int
    slots: int


@dataclass(frozen=True)
class Survey:
    """Steps of a stage, as training would take them.

    Attributes:
        steps: of the whole stage, for one of its processes; media are blank.
        read: how many of them were read.
        rows: that were learned from in these, in this process's share; so are the rest.
        tokens: that the model reads.
        spared: that it needn't read.
        targets: learned tokens.
        shapes: of all micro-batches.
    """

    steps: Steps
    read: int
    rows: int
    tokens: int
    spared: int
    targets: int
    shapes: Sequence[Shape]

    @property
    def whole(self) -> bool:
        """Whether all steps were read."""
        return self.read == len(self.steps)

    def batch(self, shape: Shape) -> Batch:
        """Returns a micro-batch once more."""
        return self.steps[shape.step].micro[shape.micro]

    def accumulates(self, shape: Shape) -> bool:
        """Tells whether other micro-batches of its step may have left gradients."""
        return sum(other.step == shape.step for other in self.shapes) > 1

    def divided(self, shape: Shape, micro_tokens: int) -> tuple[Shape, Batch]:
        """Returns the largest of the smaller micro-batches into which a step can be divided."""
        encoding = replace(self.steps.encoding, micro_tokens=micro_tokens)
        batches = replace(self.steps, encoding=encoding)[shape.step].micro
        smaller = [(_shape(shape.step, micro, batch), batch) for micro, batch in enumerate(batches)]
        return max(smaller, key=lambda pair: pair[0].tokens)


def survey(run: Run, stage: StageConfig, *, packs: bool, processes: int, rows: int, first: int = 0) -> Survey:
    """Reads some steps of a stage.

    Args:
        run: of which the stage is one.
        stage: to read.
        packs: the model takes packs of trees.
        processes: among which each step is divided; the first one's share is read.
        rows: read no more, in whole steps; but one step.
        first: the step to begin with, counted from 0.

    Raises:
        DataError: none of them can be learned from.
    """
    encoding = run.encoding(stage, packs=packs)
    blank = replace(encoding, reader=replace(encoding.reader, blank=True))
    steps = steps_of(run, stage, blank, Share(0, processes))
    read, shapes, totals = 0, list[Shape](), _Totals(0, 0, 0, 0)
    for number in range(first, len(steps)):
        if read and steps.bounds(number)[1] - steps.bounds(first)[0] > rows:
            break
        step, read = steps[number], read + 1
        shapes += [_shape(number, micro, batch) for micro, batch in enumerate(step.micro)]
        totals = _Totals(*map(sum, zip(totals, (step.used, step.tokens, step.spared, step.targets), strict=True)))
    if not totals.targets:
        raise DataError(
            f"stage {stage.name}: nothing can be learned from the rows of the {read} steps that were read; "
            "see `mmsft check`"
        )
    return Survey(steps, read, *totals, shapes)


class _Totals(NamedTuple):
    """See `Survey`."""

    rows: int
    tokens: int
    spared: int
    targets: int


def _shape(step: int, micro: int, batch: Batch) -> Shape:
    read = batch.input_ids.numel() + (batch.prompts.input_ids.numel() if batch.prompts else 0)
    media = sum(len(group.keys) for media in batch.media.values() for group in media.groups)
    slots = sum(len(media.slots) for media in batch.media.values())
    return Shape(step, micro, read, len(batch.targets.token), media, slots)
