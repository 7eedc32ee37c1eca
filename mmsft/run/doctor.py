"""Proves on a run's own first rows that its loss and gradient don't depend on how a step is computed."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import starmap
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from mmsft.data.collate import collate
from mmsft.data.encoding import Share
from mmsft.data.loader import StepData
from mmsft.errors import ConfigError, MmsftError
from mmsft.model.names import fresh, named_parameters
from mmsft.parallel import Ranks
from mmsft.run import counts
from mmsft.run.invariance import (
    REPEATED,
    ROUNDED,
    Check,
    Measured,
    Proof,
    compare,
    direction,
    exact_convolutions,
    means,
    measure,
    normalised,
    step_of,
)
from mmsft.run.load import Run
from mmsft.run.stages import Session, place
from mmsft.run.subject import Subject, step_on, subject_of
from mmsft.train import checkpoint as ckpt
from mmsft.train.checkpoint import State
from mmsft.types import Conversation, Encoded, Text, Turn

_TOKENS: Final = 512
"""Of the rows of a stage, padding included."""
_MADE_UP: Final = Conversation(
    "a made-up row",
    (Turn("user", (Text("What is two plus two?"),)), Turn("assistant", (Text("Two plus two is four."),))),
)

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
    "autocast": "bf16: something is summed or rounded in it that must not be, so that what is learned is lost",
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
        names = ", ".join(dict.fromkeys(proof.name for proof in self.failed))
        first = self.failed[0]
        return (
            f"{told}; {len(self.failed)} fail: {names}\nbegin with {first.name}, stage {first.stage}: {first.suspect}"
        )


def doctor(run: Run, tell: Callable[[str], None] = lambda text: None, tokens: int = _TOKENS) -> Report:
    """Computes the first rows of every stage in several ways, and compares.

    Dropout is off, and computations are in fp32 unless the decoder is held in something else. Weights are those with
    which the config begins, one step on, so that nothing is 0 that learns. Nothing is written to the run folder.

    Args:
        run: what would be trained.
        tell: hears of each proof when it is made.
        tokens: of the rows that are taken from each stage, padding included.

    Raises:
        MmsftError: the config doesn't fit its data or model, or the model can't learn from the rows at all.
    """
    began = time.perf_counter()
    ranks = Ranks("fp32")
    if ranks.count > 1:
        raise ConfigError(f"{ranks.count} processes: the doctor plays several in one; start it without a launcher")
    run.prepare(None)
    model = run.model()
    place(model, ranks)
    session = Session(run, ranks, model, fresh(named_parameters(model)))
    report = Report()
    done: dict[str, str] = {}
    with exact_convolutions():
        for stage in run.config.stages:
            alike = stage.recipe.model_dump_json() + ",".join(sorted(stage.train))
            if alike in done:
                report.notes.append(f"stage {stage.name}: its rows and what learns are those of stage {done[alike]}")
                tell(report.notes[-1])
                continue
            done[alike] = stage.name
            examination = _Examination(subject_of(session, stage, tokens))
            report.notes.append(examination.begin())
            tell(report.notes[-1])
            for proof in examination.proofs():
                report.proofs.append(proof)
                tell(proof.text())
    report.seconds = time.perf_counter() - began
    return report


class _Examination:
    """The proofs of one stage."""

    def __init__(self, subject: Subject) -> None:
        self._of = subject
        self._trainer = subject.trainer()

    def begin(self) -> str:
        """Moves the model one step; returns what there is to say of the stage."""
        subject = self._of
        found = step_on(self._trainer, subject.step(subject.whole))
        model = subject.session.model
        how = "" if model.packs else "; the decoder takes no packs, its threads are padded"
        if subject.bounds is ROUNDED:
            how += f"; its weights are held in {model.decoder.dtype}: for tight bounds set model.decoder.dtype=float32"
        return (
            f"stage {subject.stage.name}: {len(subject.rows)} rows, {_tokens(subject.rows)} tokens, "
            f"{len(found.scored.nll)} targets; loss {found.loss:.4f} as it starts{how}"
        )

    def proofs(self) -> Iterator[Proof]:
        """Yields the proofs in the order of `SUSPECTS`."""
        subject = self._of
        yield from self._counted()
        parts = subject.step(subject.smaller(3))
        divided = self._measure(parts)
        what = f"the sums of {len(parts.micro)} micro-batches (the mean of their means is {means(divided):.7g})"
        yield self._proof("normalisation", what, normalised(divided))
        alone = self._measure(step_of(subject.alone.batches(subject.rows, subject.loaded)))
        whole = self._measure(subject.step(subject.whole))
        if subject.session.model.packs:
            what = "each thread by itself, and all in one pack"
            yield self._proof("packing", what, compare(alone, whole, subject.bounds))
        else:
            yield self._skip("packing", "the decoder takes no packs; its threads are padded")
        yield from self._shapes(alone)
        yield self._beside_text()
        yield from self._divisions(whole, divided, parts)
        yield self._autocast(whole)
        yield self._reloaded(whole)

    def _measure(self, step: StepData) -> Measured:
        return measure(self._trainer, step)

    def _against(self, reference: Measured, step: StepData) -> Iterator[Check]:
        yield from compare(reference, self._measure(step), self._of.bounds)

    def _proof(self, name: str, what: str, checks: Iterable[Check]) -> Proof:
        """Returns a proof; an error in the making of its checks fails it."""
        proof = Proof(self._of.stage.name, name, what, suspect=SUSPECTS[name])
        try:
            return replace(proof, checks=tuple(checks))
        except MmsftError as error:
            return replace(proof, error=str(error))

    def _skip(self, name: str, reason: str) -> Proof:
        return Proof(self._of.stage.name, name, skipped=reason)

    def _counted(self) -> Iterator[Proof]:
        """Yields what needs no decoder."""
        subject = self._of
        [batch] = subject.step(subject.whole).micro
        batches = {"padded threads": batch}
        if batch.pack:
            [joined] = subject.whole.batches(subject.trees, subject.loaded)
            [padded] = subject.padded.batches(subject.rows, subject.loaded)
            batches = {"a pack": batch, "trees": joined, "padded threads": padded}
        checks = counts.targets(subject.encoding.encoder, subject.conversations, batches)
        yield self._proof("targets", "each follows its position, and they say what the assistant says", checks)
        yield self._proof("positions", "each counts its own thread", starmap(counts.positions, batches.items()))
        if not any(row.media for row in subject.rows):
            yield self._skip("towers", "there are no media")
            return
        # A medium that is there twice is to be encoded once, also beside a row without.
        rows = [*subject.rows, *([subject.plain] if subject.plain else []), subject.rows[0]]
        [batch] = subject.whole.batches(rows, subject.loaded)
        checks = counts.towers(subject.session.model, subject.encoding.reader, batch)
        yield self._proof("towers", "each medium is encoded once, and stands in its own slots", checks)

    def _shapes(self, alone: Measured) -> Iterator[Proof]:
        """Yields the comparisons of threads by themselves with all in one batch of some form."""
        subject = self._of
        step = step_of(subject.whole.batches(subject.trees, subject.loaded))
        saved = f"{_tokens(subject.chains)} → {_tokens(subject.trees)} tokens"
        what = f"each thread by itself, and all joined by what they begin with ({saved})"
        yield self._proof("trees", what, self._against(alone, step))
        step = step_of(subject.padded.batches(subject.rows, subject.loaded))
        yield self._proof("padding", "each thread by itself, and all padded on the right", self._against(alone, step))
        left = collate(subject.chains, subject.encoding.reader, subject.loaded, side="left")
        if left.mask[:, 0].all():
            yield self._skip("left padding", "there is none on this side")
            return
        checks = self._against(alone, step_of([left]))
        yield self._proof("left padding", "each thread by itself, and all padded on the left", checks)

    def _beside_text(self) -> Proof:
        """Compares a few rows and a row of text, in one batch and apart."""
        subject = self._of
        rows, other, whose = subject.rows[:3], subject.plain, "one without media"
        if not any(row.media for row in rows):
            if len(rows) < 2:
                return self._skip("text row", "there is but one row")
            rows, other, whose = rows[:1], rows[1], "another one (there are no media)"
        elif other is None:
            try:
                other, whose = subject.encoding.encoder.encode(_MADE_UP), "a made-up one without media"
            except MmsftError as error:
                return self._skip("text row", f"the first rows have none, and none can be made up: {error}")
        apart, together = (
            step_of(batch for some in split for batch in subject.whole.batches(some, subject.loaded))
            for split in ([rows, [other]], [[*rows, other]])
        )
        checks = self._against(self._measure(apart), together)
        return self._proof("text row", f"{_count(rows)} and {whose}, apart and in one batch", checks)

    def _divisions(self, whole: Measured, divided: Measured, parts: StepData) -> Iterator[Proof]:
        """Yields the comparisons of one micro-batch with several."""
        subject = self._of
        if len(parts.micro) == 1 or len(subject.rows) == 1:
            for name in ("accumulation", "batch split", "ranks"):
                yield self._skip(name, "the rows make but one micro-batch")
            return
        what = f"1 micro-batch, and {len(parts.micro)}"
        yield self._proof("accumulation", what, compare(whole, divided, subject.bounds))
        halves = [subject.rows[first::2][::-1] for first in (1, 0)]
        step = step_of(batch for half in halves for batch in subject.whole.batches(half, subject.loaded))
        what = "all rows in one micro-batch, and every other one in another order"
        yield self._proof("batch split", what, self._against(whole, step))
        first, second = (subject.step(subject.smaller(3), Share(rank, 2)) for rank in (0, 1))
        both = replace(first, micro=first.micro + second.micro, weight=first.weight + second.weight)
        what = f"1 process, and 2 with {first.used} and {second.used} rows"
        yield self._proof("ranks", what, self._against(whole, both))

    def _autocast(self, whole: Measured) -> Proof:
        subject = self._of
        if subject.session.run.config.precision == "fp32":
            return self._skip("autocast", "the config computes in fp32")
        trainer = replace(self._trainer, ranks=Ranks(subject.session.run.config.precision))
        rounded = measure(trainer, subject.step(subject.whole))
        what = f"fp32 and bf16 (the gradients are {direction(whole, rounded):.0%} apart, directions included)"
        return self._proof("autocast", what, compare(whole, rounded, ROUNDED))

    def _reloaded(self, whole: Measured) -> Proof:
        """Writes a checkpoint and loads it into a model built anew, which takes the place of the old."""
        checks = self._once_more(whole)
        return self._proof("saved and loaded", "the model, and a new one with its checkpoint", checks)

    def _once_more(self, whole: Measured) -> Iterator[Check]:
        subject, session = self._of, self._of.session
        state = State(session.run.config.stages.index(subject.stage), subject.stage.name, 1, 1)
        with TemporaryDirectory(prefix="mmsft-doctor-") as folder:
            names = named_parameters(session.model)
            saved = ckpt.save(Path(folder), state, session.model, self._trainer.optimizer, names, session.kept)
            session.model.to("cpu")  # the device needn't hold two
            session.model = session.run.model()
            ckpt.restore_weights(saved, session.model)
        session.model.to(session.ranks.device)
        again = measure(subject.trainer(), subject.step(subject.whole))
        yield from compare(whole, again, REPEATED)


def _count(rows: Sequence[Encoded]) -> str:
    return f"{len(rows)} rows" if len(rows) > 1 else "a row"


def _tokens(rows: Iterable[Encoded]) -> int:
    return sum(map(len, rows))
