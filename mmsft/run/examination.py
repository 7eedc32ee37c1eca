"""The proofs of one stage: its first rows, computed in several ways."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import starmap
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from mmsft.data.collate import collate
from mmsft.data.encoding import Share
from mmsft.data.loader import StepData
from mmsft.data.tree import threads
from mmsft.errors import MmsftError
from mmsft.model.names import named_parameters
from mmsft.model.precision import fill_up
from mmsft.parallel import Ranks
from mmsft.run import counts
from mmsft.run.invariance import (
    EXACT,
    REPEATED,
    ROUNDED,
    Check,
    Measured,
    Proof,
    compare,
    direction,
    familys_own,
    means,
    measure,
    normalised,
    step_of,
)
from mmsft.run.subject import Subject, step_on
from mmsft.train import checkpoint as ckpt
from mmsft.train.checkpoint import State
from mmsft.types import Conversation, Encoded, Text, Turn

_SHORTEST: Final = 3
"""Threads of which transformers' own logits are computed, at every token."""
_MADE_UP: Final = Conversation(
    "a made-up row",
    (Turn("user", (Text("What is two plus two?"),)), Turn("assistant", (Text("Two plus two is four."),))),
)

SUSPECTS: Final = {
    "targets": "the targets: their shift by one, their places (padding?), what of a row is learned, or its weight",
    "positions": "the positions: a token's must be the number of tokens before it in its own thread",
    "towers": "the towers or their places: a medium encoded twice, or its tokens in slots that aren't its own",
    "logits": "the head, or what a thread is told: a cap of the family is dropped, positions or a mask are wrong",
    "normalisation": "the loss: it must be Σ weight · nll ÷ Σ weight of the whole step, not a mean of means",
    "packing": "attention in packs: a tree sees its neighbour, or positions that the decoder doesn't follow",
    "trees": "attention or positions in trees: a branch sees another one or another prompt, or is learned in part",
    "padding": "padding: it is attended to, learned, or counted as a position",
    "left padding": "padding on the left, as generation has it: it is attended to, or shifts positions",
    "text row": "rows without media beside rows with them: media are dropped, or put elsewhere",
    "accumulation": "the sum over micro-batches: gradients or counts of one are lost, doubled or weighed wrongly",
    "batch split": "the division of rows among micro-batches: what is computed for a row depends on its neighbours",
    "ranks": "the shares of several processes: a row is in none of them, or in two",
    "autocast": "bf16: something is summed or rounded in it that must not be, so that what is learned is lost",
    "saved and loaded": "checkpoints: something that learns isn't written, or isn't restored",
}
"""By proof, in the order in which one builds on those before it: which part is wrong if it fails."""


class Examination:
    """The proofs of one stage."""

    def __init__(self, subject: Subject) -> None:
        self._of = subject
        self._trainer = subject.trainer()

    def begin(self) -> Iterator[str]:
        """Moves the model one step; yields what there is to say of the stage."""
        subject = self._of
        found = step_on(self._trainer, subject.step(subject.whole))
        rows = subject.rows
        media = " with media" if any(row.media for row in rows) else ""
        yield (
            f"stage {subject.stage.name}: {_count(rows)}{media}, the first in training order: {_tokens(rows)} tokens, "
            f"{len(found.scored.nll)} targets; loss {found.loss:.4f} as it starts"
        )
        yield f"  rows: {', '.join(row.id for row in rows)}"
        if subject.lost:
            reason = subject.lost[0].reason
            yield f"  {_count(subject.lost)} beside them can't be learned from, see `mmsft check`: {reason}"
        dtype = subject.session.run.config.model.decoder.dtype
        if dtype != "float32":
            yield f"  the decoder, held in {dtype}, is examined in float32, which holds the same values"

    def proofs(self) -> Iterator[Proof]:
        """Yields the proofs in the order of `SUSPECTS`."""
        subject = self._of
        yield from self._counted()
        yield self._towers()
        yield self._logits()
        parts = subject.step(subject.smaller(3))
        divided = self._measure(parts)
        what = "the step's loss, and Σ weight · nll ÷ Σ weight of its targets"
        if len(parts.micro) > 1:
            what += f", in {len(parts.micro)} micro-batches (the mean of their means is {means(divided):.7g})"
        yield self._proof("normalisation", what, normalised(divided))
        alone = self._measure(step_of(subject.alone.batches(subject.rows, subject.loaded)))
        step = subject.step(subject.whole)
        whole = self._measure(step)
        yield self._packing(alone, whole, joined=step.tokens < _tokens(subject.chains))
        yield self._trees(alone)
        yield from self._padded(alone)
        yield self._beside_text()
        yield from self._divisions(whole, divided, parts)
        yield self._autocast(whole)
        yield self._reloaded(whole)

    def _measure(self, step: StepData) -> Measured:
        return measure(self._trainer, step)

    def _against(self, reference: Measured, step: StepData) -> Iterator[Check]:
        yield from compare(reference, self._measure(step), EXACT)

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
            [joined] = subject.whole.batches(subject.joined(subject.rows), subject.loaded)
            [padded] = subject.padded.batches(subject.rows, subject.loaded)
            batches = {"a pack": batch, "trees": joined, "padded threads": padded}
        checks = counts.targets(subject.encoding.encoder, subject.conversations, batches)
        yield self._proof("targets", "each follows its position, and they say what the assistant says", checks)
        yield self._proof("positions", "each counts its own thread", starmap(counts.positions, batches.items()))

    def _towers(self) -> Proof:
        subject = self._of
        if not any(row.media for row in subject.rows):
            return self._skip("towers", subject.no_media)
        # A medium that is there twice is to be encoded once, also beside a row without.
        rows = [*subject.rows, *([subject.plain] if subject.plain else []), subject.rows[0]]
        if not subject.session.model.packs and not subject.encoding.encoder.sides:
            rows = [thread for row in rows for thread in threads(row)]
        checks = counts.towers(subject.session.model, subject.encoding.reader, subject.loaded, rows)
        return self._proof("towers", "each medium is encoded once, and its tokens fill the slots of its row", checks)

    def _logits(self) -> Proof:
        subject = self._of
        batches = subject.alone.batches(subject.rows, subject.loaded)
        short = sorted((batch for batch in batches if len(batch.targets.at)), key=lambda batch: batch.mask.sum())
        what = "by transformers' own logits for a thread, told its embeddings alone, and as it is trained"
        return self._proof("logits", what, familys_own(subject.session.model, short[:_SHORTEST], EXACT))

    def _packing(self, alone: Measured, whole: Measured, joined: bool) -> Proof:
        """Compares threads by themselves with a pack of them; that of training, unless it has rows joined."""
        subject = self._of
        if not subject.session.model.packs:
            return self._skip("packing", subject.no_packs)
        what = "each thread by itself, and all in one pack"
        if not joined:
            return self._proof("packing", what, compare(alone, whole, EXACT))
        step = step_of(subject.whole.batches(subject.chains, subject.loaded))
        return self._proof("packing", what, self._against(alone, step))

    def _trees(self, alone: Measured) -> Proof:
        """Compares threads by themselves with trees of them."""
        subject = self._of
        rows, sides = subject.rows, subject.encoding.encoder.sides
        if not subject.session.model.packs and not sides:
            return self._skip("trees", f"{subject.no_packs}, and each goes through it by itself")
        trees = subject.joined(rows)
        if sides and _tokens(trees) == _tokens(subject.chains):
            rows = [*rows, rows[0]]  # so that one prompt has two replies
            trees = subject.joined(rows)
            alone = self._measure(step_of(subject.alone.batches(rows, subject.loaded)))
        before = sum(_tokens(threads(row)) for row in rows)
        if before == _tokens(trees):
            return self._skip("trees", "no two threads begin alike")
        what = f"each thread by itself, and all joined by what they begin with ({before} → {_tokens(trees)} tokens)"
        return self._proof("trees", what, self._against(alone, step_of(subject.whole.batches(trees, subject.loaded))))

    def _padded(self, alone: Measured) -> Iterator[Proof]:
        """Yields the comparisons of threads by themselves with all of them padded."""
        subject = self._of
        [right] = subject.padded.batches(subject.rows, subject.loaded)
        if right.mask.all() and (right.prompts is None or right.prompts.mask.all()):
            for name in ("padding", "left padding"):
                yield self._skip(name, "all threads are of one length, so that none is padded")
            return
        yield self._proof(
            "padding", "each thread by itself, and all padded on the right", self._against(alone, step_of([right]))
        )
        if right.prompts is not None:
            yield self._skip("left padding", "an encoder-decoder's prompts and replies are padded on the right only")
            return
        left = collate(subject.chains, subject.encoding.reader, subject.loaded, side="left")
        checks = self._against(alone, step_of([left]))
        yield self._proof("left padding", "each thread by itself, and all padded on the left", checks)

    def _beside_text(self) -> Proof:
        """Compares a few rows and a row of text, in one batch and apart."""
        subject = self._of
        rows, other, whose = subject.rows[:3], subject.plain, "one without media"
        if not any(row.media for row in rows):
            return self._skip("text row", f"{subject.no_media}; they are all text")
        if other is None:
            whose = "a made-up one without media"
            try:
                other = subject.encoding.encoder.encode(_MADE_UP)
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
                yield self._skip(name, f"{_count(subject.rows)} of {_tokens(subject.rows)} tokens can't be divided")
            return
        what = f"1 micro-batch, and {len(parts.micro)}"
        yield self._proof("accumulation", what, compare(whole, divided, EXACT))
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
            packs, session.model = session.model.packs, session.run.model()
            ckpt.restore_weights(saved, session.model)
        fill_up(session.model.decoder)
        session.model.packs = packs
        session.model.to(session.ranks.device)
        again = measure(subject.trainer(), subject.step(subject.whole))
        yield from compare(whole, again, REPEATED)


def _count(rows: Sequence[object]) -> str:
    return f"{len(rows)} rows" if len(rows) > 1 else "1 row"


def _tokens(rows: Iterable[Encoded]) -> int:
    return sum(map(len, rows))
