"""What a stage is examined on: its model, one step on from where it starts, and its first rows."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import numpy as np
import torch

from mmsft.config import StageConfig
from mmsft.data.encoding import Encoding, Share
from mmsft.data.formats import Format
from mmsft.data.ledger import Entry
from mmsft.data.loader import StepData, Steps
from mmsft.data.media_reader import Loaded
from mmsft.data.mixture import Mixture
from mmsft.data.tree import threads
from mmsft.duration import Duration
from mmsft.errors import DataError
from mmsft.model.names import named_parameters
from mmsft.objectives import sft
from mmsft.run.invariance import Measured, measure
from mmsft.run.load import starting_point
from mmsft.run.stages import Session, optimizer_of
from mmsft.train import checkpoint as ckpt
from mmsft.train.loop import Trainer
from mmsft.types import Conversation, Encoded, Ints, Record

_SEARCHED: Final = 64
"""Rows among which those with media are looked for."""
_ALL: Final = 2**40
"""Tokens of a micro-batch that holds everything."""
_FEWEST: Final = 3
"""Rows that are taken however long they are."""
_MOST: Final = 8
"""Rows that are taken however short they are: each goes through the model by itself, too."""


@dataclass
class Subject:
    """A stage with the rows that stand for all of its rows.

    Attributes:
        session: the run, with the model.
        stage: of the run.
        encoding: of the stage.
        mixture: these rows alone, as what is trained on; every other one weighs half, so that a weight that gets lost
            shows.
        conversations: of the rows.
        rows: encoded.
        plain: a row without media to stand beside rows that have some; None = none was found.
        searched: rows that were read to find these.
        lost: those of them that can't be learned from.
        loaded: all of their media.
    """

    session: Session
    stage: StageConfig
    encoding: Encoding
    mixture: Mixture
    conversations: list[Conversation]
    rows: list[Encoded]
    plain: Encoded | None
    searched: int
    lost: list[Entry]
    loaded: Loaded

    @property
    def whole(self) -> Encoding:
        """As training has it, all in one micro-batch."""
        return replace(self.encoding, micro_tokens=_ALL)

    @property
    def padded(self) -> Encoding:
        """Threads in place of trees, all in one micro-batch."""
        return replace(self.whole, packs=False)

    @property
    def alone(self) -> Encoding:
        """Each thread in a micro-batch of its own."""
        return replace(self.padded, micro_tokens=1)

    @property
    def chains(self) -> list[Encoded]:
        """The threads of all rows."""
        return [thread for row in self.rows for thread in threads(row)]

    @property
    def no_packs(self) -> str:
        """Why the model takes none, if it takes none."""
        if self.encoding.encoder.sides:
            return "an encoder-decoder takes no packs"
        return "the decoder takes no packs, as a warning says; its threads are padded"

    @property
    def no_media(self) -> str:
        """Why no row has media, if none has."""
        return f"none of the first {self.searched} rows has media"

    def joined(self, rows: Sequence[Encoded]) -> list[Encoded]:
        """Returns rows of each source joined by what they begin with, be it no more than the template's first words."""
        rows = sorted(rows, key=lambda row: row.source)
        return self.whole.joined(rows, [row.source for row in rows])

    def smaller(self, parts: int) -> Encoding:
        """Returns an encoding that divides the rows among so many micro-batches, or more; if it can."""
        room = max(*map(len, self.chains), self.step(self.whole).tokens // parts)
        return replace(self.encoding, micro_tokens=room)

    def step(self, encoding: Encoding, share: Share | None = None) -> StepData:
        """Returns the rows as a global step of training."""
        size = Duration(len(self.rows), "examples")
        return Steps(self.mixture, encoding, 0, size, len(self.rows), share or Share())[0]

    def trainer(self) -> Trainer:
        """Lets the stage's parts of the session's model learn, and returns what its loop would need."""
        return Trainer(
            model=self.session.model,
            optimizer=optimizer_of(self.session, self.stage, self.mixture),
            objective=sft,
            ranks=self.session.ranks,
            factor=lambda step: 1.0,
            seed=0,
            sources=len(self.mixture.sources),
            clip=None,
        )


def subject_of(session: Session, stage: StageConfig, tokens: int) -> Subject:
    """Takes the first rows in training order that can be learned from, with media if the model has towers.

    Args:
        session: the run, with the model as the stage finds it; it then starts from its `init_from`, if it has one.
        stage: of the run.
        tokens: of the rows, padding included.

    Raises:
        DataError: none of the first rows can be learned from.
    """
    if start := starting_point(stage):
        session.kept |= ckpt.restore_weights(start.path, session.model)
    mixture = session.run.mixture(stage.recipe)
    encoding = session.run.encoding(stage, packs=session.model.packs)
    chosen = _choose(session, stage, mixture, encoding, tokens)
    mixture = _only(mixture, chosen.pairs)
    read = encoding.read(mixture, chosen.pairs)
    return Subject(
        session=session,
        stage=stage,
        encoding=encoding,
        mixture=mixture,
        conversations=[mixture.conversation(pair) for pair in chosen.pairs],
        rows=list(read.rows.values()),
        plain=chosen.plain,
        searched=chosen.searched,
        lost=chosen.lost,
        loaded=read.loaded,
    )


class _Chosen(NamedTuple):
    """Rows (source, row) to examine; the rest as of `Subject`."""

    pairs: Ints
    plain: Encoded | None
    searched: int
    lost: list[Entry]


def _choose(session: Session, stage: StageConfig, mixture: Mixture, encoding: Encoding, tokens: int) -> _Chosen:
    first = mixture.order(session.run.order_seed(stage)).at(0, min(_SEARCHED, mixture.epoch))
    media: list[tuple[Ints, Encoded]] = []
    plain: list[tuple[Ints, Encoded]] = []
    lost: list[Entry] = []
    searched = 0
    for searched, pair in enumerate(mixture.train[first], 1):  # noqa: B007
        read = encoding.read(mixture, pair[None])
        lost += read.lost
        # Of one that isn't learned whole, each reply alone may be short enough: it doesn't stand for the others.
        lost += [Entry(row.id, "dropped", row.note) for row in read.rows.values() if row.trimmed]
        for row in (row for row in read.rows.values() if not row.trimmed):
            (media if row.media else plain).append((pair, row))
        if _enough(media if session.model.towers else plain, tokens):
            break
    chosen, beside = (media, plain) if media else (plain, [])
    if not chosen:
        raise DataError(
            f"stage {stage.name}: none of its first {len(first)} rows can be learned from ({lost[0].reason}); "
            "see `mmsft check`"
        )
    while _enough(chosen, tokens):
        chosen.pop()
    return _Chosen(np.stack([pair for pair, _ in chosen]), beside[0][1] if beside else None, searched, lost)


def _enough(rows: Sequence[tuple[Ints, Encoded]], tokens: int) -> bool:
    long = len(rows) * max((len(row) for _, row in rows), default=0) > tokens
    return len(rows) > _MOST or (len(rows) > _FEWEST and long)


def _only(mixture: Mixture, pairs: Ints) -> Mixture:
    """Returns the mixture with these rows alone to train on, every other one at half its weight."""
    light = {mixture.row_id(pair) for pair in pairs[1::2]}
    sources = [replace(source, read=_lighter(source.read, light), reading=None) for source in mixture.sources]
    return mixture.only(pairs, sources)


def _lighter(read: Format, ids: Collection[str]) -> Format:
    """Returns a format that halves what the assistant says in some rows weighs."""

    def lighter(record: Record, id: str) -> Conversation:
        conversation = read(record, id)
        if id not in ids:
            return conversation
        # `learn: all` takes no weights for the others.
        halved = (replace(it, weight=it.weight / 2) if it.role == "assistant" else it for it in conversation.turns)
        return replace(conversation, turns=tuple(halved))

    return lighter


@torch.no_grad()
def step_on(trainer: Trainer, step: StepData) -> Measured:
    """Moves what learns as Adam's first step does: by the learning rate, against the gradient's sign.

    Returns:
        The loss and the gradient before.
    """
    with torch.enable_grad():
        found = measure(trainer, step)
    rates = {id(p): group["peak"] for group in trainer.optimizer.param_groups for p in group["params"]}
    for name, parameter in named_parameters(trainer.model).items():
        if name in found.gradient:
            parameter.sub_(rates[id(parameter)] * found.gradient[name].to(parameter.device).sign())
    return found
