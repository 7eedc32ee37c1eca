"""Proves on a run's own first rows that its loss and gradient don't depend on how a step is computed."""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import torch

from mmsft.config import StageConfig
from mmsft.data.collate import Loaded, collate
from mmsft.data.encoding import Encoding, Share
from mmsft.data.loader import StepData, Steps, order_of
from mmsft.data.mixture import Mixture
from mmsft.data.tree import threads
from mmsft.duration import Duration
from mmsft.errors import ConfigError, DataError, MmsftError
from mmsft.model.names import fresh, named_parameters
from mmsft.objectives import sft
from mmsft.parallel import Ranks
from mmsft.run import counts
from mmsft.run.invariance import (
    BOUNDS,
    Bounds,
    Check,
    Measured,
    Proof,
    compare,
    exact_convolutions,
    means,
    measure,
    normalised,
    step_of,
)
from mmsft.run.load import Run, starting_point
from mmsft.run.stages import Session, optimizer_of
from mmsft.train import checkpoint as ckpt
from mmsft.train.checkpoint import State
from mmsft.train.loop import Trainer
from mmsft.types import Batch, Conversation, Encoded, Ints, Text, Turn

_TOKENS: Final = 1024
"""Of the rows of a stage, padding included; three rows in any case."""
_SEARCHED: Final = 64
"""Rows among which those with media are looked for."""
_ALL: Final = 2**40
"""Tokens of a micro-batch that holds everything."""

SUSPECTS: Final = {
    "targets": "the targets: their shift by one, their places in a batch (padding?), or what of a row is learned",
    "positions": "the positions: a token's must be the number of tokens before it in its own thread",
    "towers": "the towers: a medium encoded twice, or tokens of one medium in the slots of another",
    "normalisation": "the loss: it must be Σ weight · nll ÷ Σ weight of the whole step, not a mean of means",
    "packing": "attention in packs: a tree sees its neighbour, or positions that the decoder doesn't follow",
    "trees": "attention or positions in trees: a branch sees another one, or what branches share isn't learned once",
    "padding": "padding: it is attended to, learned, or counted as a position",
    "left padding": "padding on the left, as generation has it: it is attended to, or shifts positions",
    "text row": "rows without media beside rows with them: their media are dropped, or put elsewhere",
    "accumulation": "the sum over micro-batches: gradients or counts of one are lost, doubled or weighed wrongly",
    "batch split": "the division of rows among micro-batches: what is computed for a row depends on its neighbours",
    "ranks": "the shares of several processes: a row is in none of them, or in two",
    "autocast": "bf16: something overflows, or is summed in bf16, that must be fp32",
    "saved and loaded": "checkpoints: something that learns isn't written, or isn't restored",
}
"""By proof, in the order in which one builds on those before it: which part is wrong if it fails."""


@dataclass
class Report:
    """What was proven.

    Attributes:
        proofs: in the order of `SUSPECTS`, stage by stage.
        notes: what was measured, and what wasn't.
        seconds: it took.
    """

    proofs: list[Proof] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether no proof failed."""
        return not self.failed

    @property
    def failed(self) -> list[Proof]:
        """The proofs that failed; those behind the first may follow from it."""
        return [proof for proof in self.proofs if not proof.ok]

    def as_dict(self) -> dict[str, Any]:
        """Returns the report as JSON has it."""
        proofs = [proof.as_dict() for proof in self.proofs]
        return {"ok": self.ok, "proofs": proofs, "notes": self.notes, "seconds": round(self.seconds, 1)}

    def text(self) -> str:
        """Returns the report for a terminal."""
        return "\n".join([*(proof.text() for proof in self.proofs), *self.notes, self.verdict()])

    def verdict(self) -> str:
        """Returns the last line for a terminal."""
        held = sum(proof.ok and not proof.skipped for proof in self.proofs)
        told = f"{held} proofs hold, in {self.seconds:.0f} s"
        if self.ok:
            return told
        first = self.failed[0]
        names = ", ".join(dict.fromkeys(proof.name for proof in self.failed))
        return f"{told}; {len(self.failed)} fail: {names}\nbegin with {first.name!r} of stage {first.stage}: {first.suspect}"


@dataclass
class _Stage:
    """A stage with the rows that stand for all of its rows.

    Attributes:
        mixture: these rows alone, as what is trained on.
        conversations: of the rows.
        rows: encoded.
        text: a row without media that stands beside them; None = there is none.
        loaded: all of their media.
    """

    session: Session
    config: StageConfig
    trainer: Trainer
    encoding: Encoding
    mixture: Mixture
    conversations: list[Conversation]
    rows: list[Encoded]
    text: Encoded | None
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
    def bounds(self) -> Bounds:
        """For computations in the precision in which the decoder is held."""
        return BOUNDS[next(self.session.model.decoder.parameters()).dtype]

    def step(self, encoding: Encoding, share: Share | None = None) -> StepData:
        """Returns the rows as a global step of training."""
        size = Duration(len(self.rows), "examples")
        return Steps(self.mixture, encoding, 0, size, len(self.rows), share or Share())[0]

    def smaller(self, parts: int) -> Encoding:
        """Returns an encoding that divides the rows among at least so many micro-batches, if they are as many."""
        chains = [thread for row in self.rows for thread in threads(row)]
        return replace(self.encoding, micro_tokens=max(max(map(len, chains)), sum(map(len, self.rows)) // parts))

    def measure(self, step: StepData) -> Measured:
        """Measures a step."""
        return measure(self.trainer, step)

    def proof(self, name: str, what: str, checks: Iterator[Check] | Sequence[Check] = ()) -> Proof:
        """Returns a proof; an error in its making fails it."""
        try:
            return Proof(self.config.name, name, what, tuple(checks), SUSPECTS[name])
        except MmsftError as error:
            return Proof(self.config.name, name, what, (), SUSPECTS[name], error=str(error))

    def skip(self, name: str, reason: str) -> Proof:
        """Returns a proof that has nothing to compare."""
        return Proof(self.config.name, name, "", skipped=reason)


def doctor(run: Run, tell: Callable[[str], None] = lambda text: None, tokens: int = _TOKENS) -> Report:
    """Computes the first rows of every stage in several ways, and compares.

    Dropout is off, and computations are in fp32 unless the decoder is held in something else. Weights are those with
    which the config begins, one step on, so that nothing is 0 that learns; nothing is written to the run folder.

    Args:
        run: what would be trained.
        tell: hears of each proof when it is made.
        tokens: of the rows that are taken from each stage, padding included.

    Raises:
        MmsftError: the config doesn't fit its data or model.
    """
    began = time.perf_counter()
    ranks = Ranks("fp32")
    if ranks.count > 1:
        raise ConfigError(f"{ranks.count} processes: doctor plays all of them in one; start it without a launcher")
    run.prepare(None)
    report = Report()
    session = Session(run, ranks, run.model().to(ranks.device), set())
    session.kept = fresh(named_parameters(session.model))
    done: dict[str, str] = {}
    with exact_convolutions():
        for stage in run.config.stages:
            key = stage.recipe.model_dump_json() + ",".join(sorted(stage.train))
            if key in done:
                note = f"stage {stage.name}: its rows and what learns are those of stage {done[key]}"
                report.notes.append(note)
                tell(note)
                continue
            done[key] = stage.name
            subject, note = _subject(session, stage, tokens)
            report.notes.append(note)
            tell(note)
            for proof in _proofs(subject):
                report.proofs.append(proof)
                tell(proof.text())
    report.seconds = time.perf_counter() - began
    return report


def _subject(session: Session, stage: StageConfig, tokens: int) -> tuple[_Stage, str]:
    """Makes a stage ready, one step from where it starts; returns what there is to say of it too."""
    run, model = session.run, session.model
    mixture = run.mixture(stage.recipe)
    encoding = run.encoding(stage, packs=model.packs)
    if start := starting_point(stage):
        session.kept |= ckpt.restore_weights(start.path, model)
    pairs, text = _choose(run, stage, mixture, encoding, tokens)
    read = encoding.read(mixture, pairs)
    rows = [read.rows[number] for number in sorted(read.rows)]
    trainer = _trainer(session, stage, mixture)
    subject = _Stage(
        session=session,
        config=stage,
        trainer=trainer,
        encoding=encoding,
        mixture=_only(mixture, pairs),
        conversations=[mixture.conversation(pair) for pair in pairs],
        rows=rows,
        text=text,
        loaded=read.loaded,
    )
    found = subject.measure(subject.step(subject.whole))
    _step_on(trainer, found)
    how = "" if model.packs else "; the decoder takes no packs of trees, so that threads are padded"
    note = (
        f"stage {stage.name}: {len(rows)} rows, {sum(map(len, rows))} tokens, {len(found.scored.nll)} targets, "
        f"loss {found.loss:.4f} as it starts{how}"
    )
    return subject, note


def _trainer(session: Session, stage: StageConfig, mixture: Mixture) -> Trainer:
    return Trainer(
        model=session.model,
        optimizer=optimizer_of(session, stage, mixture),
        objective=sft,
        ranks=session.ranks,
        factor=lambda step: 1.0,
        seed=session.run.order_seed(stage),
        sources=len(mixture.sources),
        clip=None,
    )


@torch.no_grad()
def _step_on(trainer: Trainer, found: Measured) -> None:
    """Moves what learns as Adam's first step does: by the learning rate, against the gradient's sign."""
    rates = {id(p): group["peak"] for group in trainer.optimizer.param_groups for p in group["params"]}
    for name, parameter in named_parameters(trainer.model).items():
        if name in found.gradient:
            parameter -= rates[id(parameter)] * found.gradient[name].to(parameter.device).sign()


def _choose(
    run: Run, stage: StageConfig, mixture: Mixture, encoding: Encoding, tokens: int
) -> tuple[Ints, Encoded | None]:
    """Finds the first rows in training order that can be learned from, with media if the model has towers.

    Returns:
        The rows (source, row), and one without media to stand beside them.

    Raises:
        DataError: none of the first rows can be learned from.
    """
    first = order_of(mixture, run.order_seed(stage)).at(0, min(_SEARCHED, len(mixture.train)))
    media: list[tuple[Ints, Encoded]] = []
    plain: list[tuple[Ints, Encoded]] = []
    for pair in mixture.train[first]:
        read = encoding.read(mixture, pair[None])
        for row in read.rows.values():
            (media if row.media else plain).append((pair, row))
        chosen = media if run.config.model.towers else plain
        if len(chosen) > 3 and len(chosen) * max(len(row) for _, row in chosen) > tokens:
            break
    chosen, beside = (media, plain) if media else (plain, [])
    if not chosen:
        raise DataError(
            f"stage {stage.name}: none of its first {len(first)} rows can be learned from; see `mmsft check`"
        )
    while len(chosen) > 3 and len(chosen) * max(len(row) for _, row in chosen) > tokens:
        chosen.pop()
    return np.stack([pair for pair, _ in chosen]), beside[0][1] if beside else None


def _only(mixture: Mixture, pairs: Ints) -> Mixture:
    """Returns a mixture whose rows to train on are these."""
    groups = mixture.groups
    some = copy.copy(mixture)
    some.train = pairs
    if groups is not None:
        group_of = {tuple(pair): int(group) for pair, group in zip(mixture.train.tolist(), groups, strict=True)}
        some.groups = np.unique([group_of[tuple(pair)] for pair in pairs.tolist()], return_inverse=True)[1]
    return some


def _proofs(stage: _Stage) -> Iterator[Proof]:
    """Yields the proofs in the order of `SUSPECTS`."""
    yield from _counted(stage)
    alone = stage.measure(step_of(replace(stage.padded, micro_tokens=1).batches(stage.rows, stage.loaded)))
    whole = stage.measure(stage.step(stage.whole))
    parts = stage.step(stage.smaller(3))
    divided = stage.measure(parts)
    what = f"the step in {len(parts.micro)} micro-batches, and its sums; their means' mean is {means(divided):.7g}"
    yield stage.proof("normalisation", what, normalised(divided))
    yield from _shaped(stage, alone, whole)
    yield _beside_text(stage)
    yield from _divided(stage, whole, divided, len(parts.micro))
    yield _autocast(stage, whole)
    yield _reloaded(stage, whole)


def _counted(stage: _Stage) -> Iterator[Proof]:
    """Yields what needs no decoder."""
    [whole], [padded] = stage.whole.batches(stage.rows, stage.loaded), stage.padded.batches(stage.rows, stage.loaded)
    batches = [whole, padded] if whole.pack else [padded]
    checks = counts.targets(stage.encoding.encoder, stage.conversations, batches)
    yield stage.proof("targets", "each follows its position, and they are the assistant's words", checks)
    yield stage.proof("positions", "each counts its own thread", map(counts.positions, batches))
    rows = [*stage.rows, *([stage.text] if stage.text else []), stage.rows[0]]
    seen = {placed.media.modality for row in rows for placed in row.media}
    if not seen:
        yield stage.skip("towers", "there are no media" if stage.encoding.reader.towers else "the model has none")
        return
    [batch] = stage.whole.batches(rows, stage.loaded)
    checks = counts.towers(stage.session.model, stage.encoding.reader, batch)
    yield stage.proof("towers", "each medium is encoded once, and stands in its own slots", checks)


def _shaped(stage: _Stage, alone: Measured, whole: Measured) -> Iterator[Proof]:
    """Yields the comparisons of each thread by itself with all in one batch of some form."""

    def against(step: StepData) -> tuple[Check, ...]:
        return compare(alone, stage.measure(step), stage.bounds)

    if stage.session.model.packs:
        what = f"each thread by itself, and one pack of {_count(stage.step(stage.whole))}"
        yield stage.proof("packing", what, compare(alone, whole, stage.bounds))
    else:
        yield stage.skip("packing", "the decoder takes no packs; its threads are padded")
    tree = stage.whole.joined(stage.rows, [row.source for row in stage.rows])
    [batch] = stage.whole.batches(tree, stage.loaded)
    what = f"each thread by itself, and all joined by what they begin with ({_tokens(stage.rows)} → {_tokens(tree)} tokens)"
    yield stage.proof("trees", what, against(step_of([batch])))
    [right] = stage.padded.batches(stage.rows, stage.loaded)
    yield stage.proof("padding", "each thread by itself, and all padded on the right", against(step_of([right])))
    chains = [thread for row in stage.rows for thread in threads(row)]
    left = collate(chains, stage.encoding.reader, stage.loaded, side="left")
    if left.mask[:, 0].all():
        yield stage.skip("left padding", "there is none on this side")
    else:
        yield stage.proof("left padding", "each thread by itself, and all padded on the left", against(step_of([left])))


def _beside_text(stage: _Stage) -> Proof:
    """Compares a few rows and a row of text, in one batch and apart."""
    media, text, whose = stage.rows[:3], stage.text, "one without media"
    if not any(row.media for row in media):
        if len(media) < 2:
            return stage.skip("text row", "there is but one row")
        media, text, whose = media[:-1], media[-1], "another one (there are no media)"
    elif text is None:
        try:
            text, whose = stage.encoding.encoder.encode(_MADE_UP), "a made-up one without media"
        except MmsftError as error:
            return stage.skip("text row", f"the recipe has none, and its template refuses one: {error}")
    apart = [*stage.whole.batches(media, stage.loaded), *stage.whole.batches([text], stage.loaded)]
    together = stage.whole.batches([*media, text], stage.loaded)
    measured = (stage.measure(step_of(batches)) for batches in (apart, together))
    what = f"{len(media)} rows and {whose}, apart and in one batch"
    return stage.proof("text row", what, compare(*measured, stage.bounds))


_MADE_UP: Final = Conversation(
    "a made-up row",
    (Turn("user", (Text("What is two plus two?"),)), Turn("assistant", (Text("Two plus two is four."),))),
)


def _divided(stage: _Stage, whole: Measured, divided: Measured, count: int) -> Iterator[Proof]:
    """Yields the comparisons of one micro-batch with several."""
    if count > 1:
        yield stage.proof("accumulation", f"1 micro-batch, and {count}", compare(whole, divided, stage.bounds))
    else:
        yield stage.skip("accumulation", "the rows make but one micro-batch")
    if len(stage.rows) > 1:
        halves = [stage.rows[half::2][::-1] for half in (1, 0)]
        batches = [batch for half in halves for batch in stage.whole.batches(half, stage.loaded)]
        checks = compare(whole, stage.measure(step_of(batches)), stage.bounds)
        yield stage.proof("batch split", "all rows, and every other one first, in another order", checks)
    else:
        yield stage.skip("batch split", "there is but one row")
    first, second = (stage.step(stage.smaller(3), Share(rank, 2)) for rank in (0, 1))
    both = replace(first, micro=first.micro + second.micro, weight=first.weight + second.weight)
    what = f"1 process, and 2 with {first.used} and {second.used} rows"
    yield stage.proof("ranks", what, compare(whole, stage.measure(both), stage.bounds))


def _autocast(stage: _Stage, whole: Measured) -> Proof:
    precision = stage.session.run.config.precision
    if precision == "fp32":
        return stage.skip("autocast", "the config computes in fp32")
    trainer = replace(stage.trainer, ranks=Ranks(precision))
    measured = measure(trainer, stage.step(stage.whole))
    return stage.proof("autocast", f"fp32, and {precision}", compare(whole, measured, BOUNDS[torch.bfloat16]))


def _reloaded(stage: _Stage, whole: Measured) -> Proof:
    """Writes a checkpoint and loads it into a model that the config builds anew, which goes on in place of the old."""
    session, config = stage.session, stage.config
    state = State(session.run.config.stages.index(config), config.name, 1, 1)

    def checks() -> Iterator[Check]:
        with TemporaryDirectory(prefix="mmsft-doctor-") as folder:
            names = named_parameters(session.model)
            path = ckpt.save(Path(folder), state, session.model, stage.trainer.optimizer, names, session.kept)
            session.model.to("cpu")  # the device need not hold two
            session.model = session.run.model()
            ckpt.restore_weights(path, session.model)
        session.model.to(session.ranks.device)
        trainer = _trainer(session, config, stage.mixture)
        # The same computation once more: nothing of it may differ but by what a device does in no fixed order.
        yield from compare(whole, measure(trainer, stage.step(stage.whole)), Bounds(1e-6, 1e-5))

    return stage.proof("saved and loaded", "the model, and a new one with its checkpoint", checks())


def _count(step: StepData) -> str:
    trees = len(step.micro[0].ids)
    return f"{trees} trees" if trees > 1 else "a tree"


def _tokens(rows: Sequence[Encoded]) -> int:
    return sum(map(len, rows))
