"""Tells before a run what it will take: parameters, tokens, memory and time, and whether it fits."""

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

from mmsft.config import StageConfig
from mmsft.errors import ConfigError, OutOfMemory
from mmsft.model.parts import Part, parts
from mmsft.run.forecast import Forecast, Forecaster, Way, gib, way_out
from mmsft.run.load import Run
from mmsft.run.machines import Machine, named, this_machine
from mmsft.run.survey import Survey, survey
from mmsft.run.trial import Trial, TrialFailed, trial

CLOSE: Final = 0.15
"""How far what is foretold may be from what is measured, as a part of it."""
_RAN_OUT: Final = "it was tried, and ran out of memory"


@dataclass(frozen=True)
class StagePlan:
    """What a stage will take.

    Attributes:
        stage: of the run.
        learning: the model's parts with what of them learns.
        found: its steps.
        forecast: of its largest micro-batch.
        seconds: that this one and the optimiser take, by their operators.
        closing: of these, for the optimiser.
        room: bytes that there are for it.
        trial: what was measured of it; None = it wasn't run.
        untried: why it wasn't run, or why that failed.
        ways: what would fit if it doesn't.
    """

    stage: StageConfig
    learning: tuple[Part, ...]
    found: Survey
    forecast: Forecast
    seconds: float
    closing: float
    room: int
    trial: Trial | None
    untried: str
    ways: tuple[Way, ...]

    @property
    def peak(self) -> int:
        """Bytes at the most: measured, if it was, else foretold."""
        return self.trial.peak if self.trial else self.forecast.peak

    @property
    def fits(self) -> bool:
        """Whether the stage's largest micro-batch fits into the memory that there is."""
        return self.peak <= self.room and self.untried != _RAN_OUT

    @property
    def off(self) -> float | None:
        """By what part of the measured peak the foretold one is off; None = nothing was measured."""
        return self.forecast.peak / self.trial.peak - 1 if self.trial else None

    @property
    def limit(self) -> int:
        """Most tokens that a micro-batch can have, whatever its rows."""
        size, limit = self.stage.batch, self.stage.micro_tokens
        return min(limit, int(size.value) * self.stage.recipe.length) if size.unit == "examples" else limit

    @property
    def step_seconds(self) -> float:
        """How long a step takes on average, without waiting for data."""
        whole = self.seconds + self.closing
        slower = self.trial.seconds / whole if self.trial else 1.0
        tokens = sum(shape.tokens for shape in self.found.shapes) / self.found.read
        return slower * (self.seconds * tokens / self.forecast.shape.tokens + self.closing)

    @property
    def stage_seconds(self) -> float:
        """How long the stage takes, without waiting for data, evaluations and checkpoints."""
        return self.step_seconds * len(self.found.steps)

    def as_dict(self) -> dict[str, Any]:
        """Returns the plan as JSON has it; memory in bytes."""
        found, shape = self.found, self.forecast.shape
        return {
            "name": self.stage.name,
            "steps": len(found.steps),
            "steps_read": found.read,
            "parts": [asdict(part) for part in self.learning],
            "step": {
                "rows": found.rows / found.read,
                "tokens": found.tokens / found.read,
                "spared": found.spared / found.read,
                "learned": found.targets / found.read,
                "micro_batches": len(found.shapes) / found.read,
            },
            "limit": self.limit,
            "largest": {**shape._asdict(), "step": shape.step + 1, "micro": shape.micro + 1},
            "memory": self.forecast.parts,
            "foretold_peak": self.forecast.peak,
            "measured_peak": self.trial and self.trial.peak,
            "room": self.room,
            "fits": self.fits,
            "flops": self.forecast.cost.flops,
            "foretold_seconds": self.seconds + self.closing,
            "measured_seconds": self.trial and self.trial.seconds,
            "step_seconds": self.step_seconds,
            "stage_seconds": self.stage_seconds,
            "untried": self.untried,
            "ways": [{"settings": way.settings, "peak": way.peak} for way in self.ways],
        }

    def lines(self) -> Iterator[str]:
        """Yields the plan for a terminal."""
        found, shape = self.found, self.forecast.shape
        read = "all read" if found.whole else f"the first {found.read:,} read"
        yield f"stage {self.stage.name}: {len(found.steps):,} steps of {self.stage.batch}, {read}"
        for part in self.learning:
            learns = f"{part.learning:,} learn" if part.learning else "frozen"
            yield f"  {part.name:<28} {part.total:>15,} parameters, {learns}"
        each = [count / found.read for count in (found.rows, found.tokens, found.spared, found.targets)]
        yield (
            f"  a step         {each[0]:,.1f} rows, {each[1]:,.1f} tokens ({each[2]:,.1f} more are spared), "
            f"{each[3]:,.1f} learned, {len(found.shapes) / found.read:,.1f} micro-batches"
        )
        media = f", {shape.media} media" if shape.media else ""
        yield f"  largest        {shape.tokens:,} tokens{media}, {shape.targets:,} learned: in step {shape.step + 1}"
        if self.limit > shape.tokens and not found.whole:
            most = gib(self.forecast.with_tokens(self.limit))
            yield f"                 steps that were not read may have up to {self.limit:,} tokens, and take {most}"
        yield f"  memory         {gib(self.forecast.peak)} of {gib(self.room)} for that one, foretold"
        for name, size in self.forecast.parts.items():
            yield f"    {name:<26} {size / 2**20:>9,.0f} MiB"
        yield from self._measured()
        yield f"  time           {duration(self.step_seconds)} a step, {duration(self.stage_seconds)} in all"
        yield from self._verdict()

    def _measured(self) -> Iterator[str]:
        if self.trial is None or self.off is None:
            yield f"  measured       nothing: {self.untried}"
            return
        apart = "" if abs(self.off) <= CLOSE else "; that is far, so believe what was measured"
        whole = self.seconds + self.closing
        yield (
            f"  measured       {gib(self.trial.peak)} (foretold {self.off:+.0%}{apart}), "
            f"{duration(self.trial.seconds)} (foretold {duration(whole)}), "
            f"{self.forecast.cost.flops / self.trial.seconds / 1e9:,.0f} GFLOP/s"
        )

    def _verdict(self) -> Iterator[str]:
        if self.fits:
            yield "  it fits"
            return
        yield f"  it does not fit: {gib(self.peak)} are needed, and there are {gib(self.room)}; what would help:"
        for line in way_out(self.forecast, self.ways, self.room):
            yield f"    {line}"


@dataclass(frozen=True)
class Plan:
    """What a run will take, stage by stage."""

    machine: Machine
    stages: tuple[StagePlan, ...]

    @property
    def ok(self) -> bool:
        """Whether all stages fit."""
        return all(stage.fits for stage in self.stages)

    def as_dict(self) -> dict[str, Any]:
        """Returns the plan as JSON has it."""
        return {"ok": self.ok, "machine": asdict(self.machine), "stages": [stage.as_dict() for stage in self.stages]}

    def text(self) -> str:
        """Returns the plan for a terminal."""
        machine = self.machine
        how = "measured" if machine.measured else "three fifths of the data sheet"
        process = f", of which this process takes {gib(machine.process)} already" if machine.process else ""
        lines = [
            f"on {machine.name}: {gib(machine.memory + machine.process)} each{process}; "
            f"{machine.narrow / 1e12:.2f} TFLOP/s in bf16, {machine.wide / 1e12:.2f} in fp32, "
            f"{machine.bandwidth / 1e9:,.0f} GB/s ({how})"
        ]
        for stage in self.stages:
            lines += ["", *stage.lines()]
        total = duration(sum(stage.stage_seconds for stage in self.stages))
        return "\n".join([*lines, "", f"{total} of computing in all; an estimate"])


def plan(run: Run, gpus: str | None = None, *, tries: bool = True, rows: int = 10_000) -> Plan:
    """Plans a run's stages; the model is built without the decoder's weights, and no medium is decoded.

    Args:
        run: what would be trained.
        gpus: a machine of GPUs to plan for, e.g. ``8xA100-80G``; None = this one.
        tries: run the largest micro-batch of each stage in a process of its own, if it is for this machine.
        rows: at most so many of each stage are read, in training order.

    Raises:
        MmsftError: the config doesn't fit its data or model, or the machine isn't known.
    """
    if (started := os.environ.get("WORLD_SIZE", "1")) not in ("", "1"):
        raise ConfigError(f"WORLD_SIZE: {started}: the plan is made in one process; start it without a launcher")
    machine = this_machine() if gpus is None else named(gpus)
    run.prepare(None)
    model = run.model(empty=True)
    model.find_attention()
    forecaster = Forecaster(run, model, machine)
    planned = []
    for number, stage in enumerate(run.config.stages):
        found = survey(run, stage, packs=model.packs, processes=machine.count, rows=rows)
        forecast = forecaster.largest(stage, found)
        learning = tuple(parts(model))
        why = _untried(machine, forecast, tries)
        measured, why = (None, why) if why else _tried(run, number, found, forecast)
        peak = measured.peak if measured else forecast.peak
        short = peak > machine.memory or why == _RAN_OUT
        ways = forecaster.ways(stage, found, forecast.shape, machine.memory) if short else []
        seconds, closing = machine.seconds(forecast.cost.ops), machine.seconds(forecast.cost.closing)
        planned.append(
            StagePlan(stage, learning, found, forecast, seconds, closing, machine.memory, measured, why, tuple(ways))
        )
    return Plan(machine, tuple(planned))


def _untried(machine: Machine, forecast: Forecast, tries: bool) -> str:
    """Says why a micro-batch isn't to be run; nothing if it is."""
    if not machine.measured:
        return "it is for another machine"
    if not tries:
        return "as asked for"
    return "" if forecast.peak <= machine.memory else "it would take more memory than there is"


def _tried(run: Run, stage: int, found: Survey, forecast: Forecast) -> tuple[Trial | None, str]:
    shape = forecast.shape
    try:
        return trial(run, stage, found.batch(shape), accumulates=found.accumulates(shape)), ""
    except OutOfMemory:
        return None, _RAN_OUT
    except TrialFailed as error:
        return None, str(error)


def duration(seconds: float) -> str:
    """Returns seconds as a person reads them."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"
