"""Proves on a run's own first rows that its loss and gradient don't depend on how a step is computed."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

from mmsft.errors import ConfigError
from mmsft.model.fusion import MultimodalModel
from mmsft.model.names import fresh, named_parameters
from mmsft.model.precision import fill_up
from mmsft.parallel import Ranks
from mmsft.run.examination import Examination
from mmsft.run.invariance import Proof, exact_convolutions
from mmsft.run.load import Run
from mmsft.run.stages import Session, place
from mmsft.run.subject import subject_of
from mmsft.train.optim import select

_TOKENS: Final = 512
"""Of the rows of a stage, padding included."""


@dataclass
class Report:
    """What was proven.

    Attributes:
        proofs: in the order of `SUSPECTS`, stage by stage.
        notes: on what rows each stage was examined, and what wasn't.
        seconds: it took.
        told: all that for a terminal, in the order in which it was found.
    """

    proofs: list[Proof] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    told: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether no proof failed."""
        return not self.failed

    @property
    def failed(self) -> list[Proof]:
        """The proofs that failed; those behind the first may follow from it."""
        return [proof for proof in self.proofs if not proof.ok]

    def add(self, proof: Proof) -> Proof:
        """Files a proof; returns it with a word on the first of its stage that failed."""
        before = next((one.name for one in self.failed if one.stage == proof.stage), None)
        if before and not proof.ok:
            proof = replace(proof, suspect=f"may follow from {before}; if not, {proof.suspect}")
        self.proofs.append(proof)
        return proof

    def as_dict(self) -> dict[str, Any]:
        """Returns the report as JSON has it."""
        proofs = [proof.as_dict() for proof in self.proofs]
        return {"ok": self.ok, "proofs": proofs, "notes": self.notes, "seconds": round(self.seconds, 1)}

    def text(self) -> str:
        """Returns the report for a terminal."""
        return "\n".join([*self.told, self.verdict()])

    def verdict(self) -> str:
        """Returns the last line for a terminal."""
        held = sum(proof.ok and not proof.skipped for proof in self.proofs)
        skipped = sum(proof.skipped is not None for proof in self.proofs)
        told = f"{held} proofs hold, {skipped} skipped, in {self.seconds:.0f} s"
        if self.ok:
            return told
        names = ", ".join(dict.fromkeys(proof.name for proof in self.failed))
        first = self.failed[0]
        return (
            f"{told}; {len(self.failed)} fail: {names}\n"
            f"begin with {first.name}, stage {first.stage}: {first.suspect}\n"
            "if the config names a part of your own (kind, format, template), look there first; if not, the fault is "
            "in mmsft or transformers: please report it, with the output of --json"
        )


def doctor(run: Run, tell: Callable[[str], None] = lambda text: None, tokens: int = _TOKENS) -> Report:
    """Computes the first rows of every stage in several ways, and compares.

    Dropout is off, and computations are in fp32, also of a decoder that is held in 16 bits. Weights are those with
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
    model = _examined(run)
    session = Session(run, ranks, model, fresh(named_parameters(model)))
    report = Report()

    def say(text: str) -> None:
        report.told.append(text)
        tell(text)

    def note(text: str) -> None:
        report.notes.append(text)
        say(text)

    say("each proof computes the same rows in two ways: both numbers, how far they are apart (÷ the first), the bound")
    done: dict[str, str] = {}
    with exact_convolutions():
        for stage in run.config.stages:
            alike = stage.recipe.model_dump_json() + ",".join(sorted(stage.train))
            if alike in done:
                note(f"stage {stage.name}: its rows and what learns are those of stage {done[alike]}")
                continue
            done[alike] = stage.name
            examination = Examination(subject_of(session, stage, tokens))
            for text in examination.begin():
                note(text)
            for proof in examination.proofs():
                say(report.add(proof).text())
    report.seconds = time.perf_counter() - began
    return report


def _examined(run: Run) -> MultimodalModel:
    """Builds the model as training would, then holds all of it in fp32."""
    run.prepare(None)
    model = run.model()
    place(model, Ranks(run.config.precision))  # it may take packs in one precision and not in another
    names = named_parameters(model)
    for stage in run.config.stages:
        select(names, stage.train)  # refuses what can't learn as it is held in training
    fill_up(model.decoder)
    return model
