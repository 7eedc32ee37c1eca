"""Foretells what a stage's largest micro-batch takes, and what to change where it doesn't fit."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, get_args

from mmsft.config import Checkpointing, StageConfig
from mmsft.duration import Duration
from mmsft.errors import MmsftError, OutOfMemory
from mmsft.model.fusion import MultimodalModel
from mmsft.model.names import named_parameters
from mmsft.run.load import Run
from mmsft.run.machines import Machine, this_machine
from mmsft.run.simulate import Cost, Simulation
from mmsft.run.survey import Shape, Survey, survey
from mmsft.train.loop import Step
from mmsft.train.optim import select
from mmsft.types import Batch

LIBRARIES: Final = 192 * 2**20
"""Bytes that libraries take on a CPU once they compute: kernels compiled for each shape, buffers of matrix products,
what malloc keeps. Measured under SmolLM2: 100 to 300 MB beyond what tensors hold."""


@dataclass(frozen=True)
class Forecast:
    """What a stage's largest micro-batch takes.

    Attributes:
        shape: of the micro-batch.
        cost: of it.
        libraries: bytes that come to it on the machine.
    """

    shape: Shape
    cost: Cost
    libraries: int

    @property
    def peak(self) -> int:
        """Bytes of memory at the most, without what the process takes before the model is loaded."""
        return self.cost.peak + self.libraries

    @property
    def parts(self) -> dict[str, int]:
        """The same by part; what is nothing is left out."""
        return {name: size for name, size in {**self.cost.parts, "libraries": self.libraries}.items() if size}

    @property
    def standing(self) -> int:
        """Bytes that any micro-batch takes: weights, gradients and the optimiser."""
        return sum(self.cost.parts[name] for name in ("weights", "gradients", "optimiser"))

    def with_tokens(self, tokens: int) -> int:
        """Returns bytes at the most for a micro-batch of the same kind with more tokens."""
        more = max(0.0, tokens / self.shape.tokens - 1)
        return self.peak + int(more * (self.cost.peak - self.standing))


@dataclass(frozen=True)
class Way:
    """What would take less memory: settings, as the command line takes them, and bytes at the peak."""

    settings: tuple[str, ...]
    peak: int


class Forecaster:
    """Foretells the stages of a run.

    Args:
        run: its parts.
        model: built without the decoder's weights; it is used up.
        machine: on which it would train.
    """

    def __init__(self, run: Run, model: MultimodalModel, machine: Machine) -> None:
        self._run, self._machine = run, machine
        self._simulation = Simulation(model, bf16=run.config.precision == "bf16", gpu=machine.gpu)

    def largest(self, stage: StageConfig, found: Survey) -> Forecast:
        """Foretells the micro-batch that takes the most memory of those that were read."""
        longest = max(found.shapes, key=lambda shape: (shape.tokens, shape.targets))
        forecast = self.of(stage, found, longest)
        # Where targets cost more than tokens, one with fewer tokens may take more.
        parts = forecast.cost.parts
        token, target = parts["activations"] / longest.tokens, parts["logits"] / max(1, longest.targets)
        dearest = max(found.shapes, key=lambda shape: token * shape.tokens + target * shape.targets)
        if dearest == longest:
            return forecast
        return max(forecast, self.of(stage, found, dearest), key=lambda one: one.peak)

    def of(self, stage: StageConfig, found: Survey, shape: Shape) -> Forecast:
        """Foretells a micro-batch."""
        return self._of(stage, shape, found.batch(shape), found.accumulates(shape))

    def _of(self, stage: StageConfig, shape: Shape, batch: Batch, accumulates: bool) -> Forecast:
        cost = self._simulation.step(stage, batch, accumulates=accumulates, lora_trained=self._lora_trained(stage))
        return Forecast(shape, cost, 0 if self._machine.gpu else LIBRARIES)

    def _lora_trained(self, stage: StageConfig) -> bool:
        """Tells whether the decoder's LoRA adds anything by the stage's end."""
        names = named_parameters(self._simulation.model)
        stages = self._run.config.stages
        until = stages[: [other.name for other in stages].index(stage.name) + 1]
        learned = (name for past in until for group in select(names, past.train) for name in group.names)
        return any(past.init_from for past in until) or any(name.startswith("decoder.lora.") for name in learned)

    def ways(self, stage: StageConfig, found: Survey, shape: Shape, room: int) -> list[Way]:
        """Returns what to set so that the step of a micro-batch fits; the first way of each kind that does.

        Args:
            stage: of the run.
            found: its steps.
            shape: the micro-batch that doesn't fit.
            room: bytes.
        """
        kept = [stage]
        if self._simulation.model.decoder.supports_gradient_checkpointing:
            ways_of_keeping = get_args(Checkpointing)  # from all activations to the fewest
            less = ways_of_keeping[ways_of_keeping.index(stage.activation_checkpointing) + 1 :]
            kept += [stage.model_copy(update={"activation_checkpointing": which}) for which in less]
        ways = []
        for changed in kept:
            if changed is not stage:
                ways.append(self._way(stage, changed, self.of(changed, found, shape).peak))
                if ways[-1].peak <= room:
                    continue
            ways += self._smaller(stage, changed, found, shape, room)
        return [way for way in ways if way.peak <= room]

    def _smaller(
        self, stage: StageConfig, changed: StageConfig, found: Survey, shape: Shape, room: int
    ) -> Iterator[Way]:
        """Yields ever smaller micro-batches until one fits; none is smaller than the recipe's longest row."""
        tokens = shape.tokens
        while tokens > stage.recipe.length:
            tokens = max(stage.recipe.length, tokens // 2)
            smaller = changed.model_copy(update={"micro_batch": Duration(tokens, "tokens")})
            largest, batch = found.divided(shape, tokens)
            forecast = self._of(changed, largest, batch, accumulates=True)
            way = self._way(stage, smaller, forecast.with_tokens(tokens))  # another step may fill its own further
            yield way
            if way.peak <= room:
                return

    def _way(self, stage: StageConfig, changed: StageConfig, peak: int) -> Way:
        settings = []
        if changed.micro_batch != stage.micro_batch:
            settings.append(f"stages.{stage.name}.micro_batch='{changed.micro_batch}'")
        if changed.activation_checkpointing != stage.activation_checkpointing:
            settings.append(f"stages.{stage.name}.activation_checkpointing={changed.activation_checkpointing}")
        return Way(tuple(settings), peak)


def way_out(forecast: Forecast, ways: Sequence[Way], room: int) -> list[str]:
    """Says what to do about a micro-batch that doesn't fit.

    Args:
        forecast: of the micro-batch.
        ways: what was found to fit.
        room: bytes.
    """
    told = [f"{' '.join(way.settings)}  takes {gib(way.peak)}" for way in ways]
    if forecast.shape.slots * 2 > forecast.shape.tokens:
        part = forecast.shape.slots / forecast.shape.tokens
        told.append(f"{part:.0%} of its tokens are media: fewer frames, smaller pictures or an adapter that pools")
    if forecast.standing > room:
        told.append(
            f"weights, gradients and the optimiser alone take {gib(forecast.standing)}: train model.decoder.lora, "
            "over a decoder held in model.decoder.dtype: bfloat16, or a smaller decoder"
        )
    elif not ways:
        told.append("a smaller recipe.length, or a larger machine (see --gpus): no micro-batch of its rows fits")
    return told


def gib(size: float) -> str:
    """Returns bytes as a person reads them."""
    return f"{size / 2**30:.2f} GiB"


def telling_what_fits(
    steps: Iterator[Step], run: Run, stage: StageConfig, packs: bool, processes: int
) -> Iterator[Step]:
    """Passes a stage's steps on; says with their `OutOfMemory` what `mmsft plan` would have said.

    Args:
        steps: of the stage, as they are done.
        run: of which the stage is one.
        stage: that trains.
        packs: the model takes packs of trees.
        processes: that train together.

    Raises:
        OutOfMemory: a step needs more memory than there is.
    """
    try:
        yield from steps
    except OutOfMemory as error:
        advice = _advice(run, stage, packs, processes, error.step)
        raise OutOfMemory("\n".join([str(error), *advice]), error.step) from error


def _advice(run: Run, stage: StageConfig, packs: bool, processes: int, step: int) -> list[str]:
    try:
        forecaster = Forecaster(run, run.model(empty=True), this_machine())
        found = survey(run, stage, packs=packs, processes=processes, rows=0, first=step)
        forecast = forecaster.largest(stage, found)
        # How much was free isn't known any more: what fits must take clearly less than what didn't.
        room = forecast.libraries + int(0.9 * forecast.cost.peak)
        told = way_out(forecast, forecaster.ways(stage, found, forecast.shape, room), room)
    except MmsftError as error:
        return [f"(nothing smaller could be looked for: {error})"]
    return [f"by `mmsft plan` it takes {gib(forecast.peak)}; what takes less:", *(f"  {line}" for line in told)]
