"""Measures while a stage trains where its time and memory go: by phase, by operator, by part, and in a trace."""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from mmsft.data.loader import StepData
from mmsft.model.fusion import MultimodalModel
from mmsft.model.tower import Tower
from mmsft.objectives import Loss
from mmsft.run.lock import unwritable
from mmsft.run.machines import resident
from mmsft.train.loop import Objective, Step, Trainer, train
from mmsft.types import Batch

PHASES: Final = (
    "wait for data",
    "embeddings",
    "towers",
    "adapters",
    "decoder",
    "head and loss",
    "backward, clipping",
    "optimiser",
    "bookkeeping",
    "between steps",
)
"""Of a step, in their order; what else a run does is between steps: evaluation, checkpoints, the log, the screen."""

_TRACED: Final = 3
"""Steps in the trace, behind two that warm up."""
_OPERATORS: Final = 40
"""Lines of the table by operator."""


@dataclass
class Clock:
    """Adds up the seconds of each phase.

    Attributes:
        device: on which the phases compute; a phase ends when the device has done it.
        seconds: by phase, of the step under way.
    """

    device: torch.device
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    _phase: str = "wait for data"
    _since: float = field(default_factory=time.perf_counter)
    _marked: Any = None

    def switch(self, phase: str) -> None:
        """Ends a phase and begins another."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        if self._marked is not None:
            self._marked.__exit__(None, None, None)
        now = time.perf_counter()
        self.seconds[self._phase] += now - self._since
        self._phase, self._since = phase, now
        self._marked = record_function(f"phase: {phase}")  # as the trace shows it
        self._marked.__enter__()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Leaves out what is done inside: the profile's own work."""
        self.switch(self._phase)
        try:
            yield
        finally:
            self._since = time.perf_counter()

    def lap(self) -> dict[str, float]:
        """Returns the seconds of a step that is over, and begins anew."""
        seconds, self.seconds = self.seconds, dict.fromkeys(PHASES, 0.0)
        return seconds

    def waiting(self, data: Iterable[StepData]) -> Iterator[StepData]:
        """Passes data on; what it takes until they come is waiting."""
        items = iter(data)
        while True:
            self.switch("wait for data")
            item = next(items, None)
            self.switch("bookkeeping")
            if item is None:
                return
            yield item

    def objective(self, given: Objective) -> Objective:
        """Returns the objective; what comes behind it is the backward pass."""

        def timed(model: nn.Module, batch: Batch, sources: int) -> Loss:
            self.switch("embeddings")
            loss = given(model, batch, sources)
            self.switch("backward, clipping")
            return loss

        return timed

    @contextmanager
    def attached(self, model: MultimodalModel, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """Watches the parts of a model and its optimiser for a while."""
        handles: list[Any] = [
            optimizer.register_step_pre_hook(lambda *_: self.switch("optimiser")),
            optimizer.register_step_post_hook(lambda *_: self.switch("bookkeeping")),
        ]
        for tower in model.towers.values():
            assert isinstance(tower, Tower)
            handles += self._around(tower.encoder, "towers", "embeddings")
            handles += self._around(tower.adapter, "adapters", "embeddings")
        handles += self._around(model.body, "decoder", "head and loss")
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self.switch("between steps")

    def _around(self, module: nn.Module, inside: str, behind: str) -> list[Any]:
        return [
            module.register_forward_pre_hook(lambda *_: self.switch(inside)),
            module.register_forward_hook(lambda *_: self.switch(behind)),
        ]


@dataclass
class Profile:
    """What was measured so far.

    Attributes:
        folder: where it is written.
        trainer: of the stage.
        laps: seconds by phase, a step each.
        gradients: bytes, as the optimiser finds them.
    """

    folder: Path
    trainer: Trainer
    laps: list[dict[str, float]] = field(default_factory=list)
    gradients: int = 0

    def memory(self) -> dict[str, int]:
        """Returns bytes by part, and the most that there ever were."""
        tensors = [*self.trainer.model.parameters(), *self.trainer.model.buffers()]
        state = [value for values in self.trainer.optimizer.state.values() for value in values.values()]
        cuda = self.trainer.ranks.device.type == "cuda"
        return {
            "weights": sum(tensor.nbytes for tensor in tensors),
            "gradients": self.gradients,
            "optimiser": sum(value.nbytes for value in state if isinstance(value, Tensor)),
            "peak of the device" if cuda else "peak of the process, with its libraries": (
                torch.cuda.max_memory_allocated() if cuda else resident(most=True)
            ),
        }

    def note_gradients(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Measures the gradients; to be called before the optimiser moves the weights."""
        parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
        self.gradients = sum(p.grad.nbytes for p in parameters if p.grad is not None)

    def write(self) -> None:
        """Writes the tables anew.

        Raises:
            ConfigError: the folder refuses.
        """
        # The first step also compiles kernels and makes the optimiser's state.
        counted = self.laps[1:] or self.laps
        mean = {phase: sum(lap[phase] for lap in counted) / len(counted) for phase in PHASES}
        values = {"steps": len(self.laps), "seconds": mean, "memory": self.memory()}
        with _writing(self.folder):
            (self.folder / "profile.json").write_text(json.dumps(values, indent=1), encoding="utf-8")
            (self.folder / "profile.txt").write_text(self._text(mean), encoding="utf-8")

    def _text(self, mean: dict[str, float]) -> str:
        whole = sum(mean.values()) or 1.0
        first = sum(self.laps[0].values())
        lines = [f"{len(self.laps)} steps; seconds a step, without the first one, which took {first:.3f}"]
        lines += [f"  {phase:<40} {seconds:9.3f} {seconds / whole:7.1%}" for phase, seconds in mean.items() if seconds]
        lines += ["memory, MiB"]
        lines += [f"  {part:<40} {size / 2**20:9,.1f}" for part, size in self.memory().items()]
        return "\n".join(lines) + "\n"


def train_profiled(
    trainer: Trainer, data: Iterable[StepData], steps: int, model: MultimodalModel, folder: Path
) -> Iterator[Step]:
    """Runs a stage's steps as `train` does, and measures them.

    The tables are written after each step, the trace behind its last, or where the run ends: one that dies leaves what
    was measured until then.

    Args:
        trainer: as of `train`.
        data: as of `train`.
        steps: as of `train`.
        model: that the trainer may have wrapped.
        folder: where ``profile.txt``, ``profile.json``, ``operators.txt`` and ``trace.json`` are written.

    Raises:
        ConfigError: the folder can't be written.
        MmsftError: as of `train`.
    """
    clock, found = Clock(trainer.ranks.device), Profile(folder, trainer)
    noted = trainer.optimizer.register_step_pre_hook(found.note_gradients)
    timed = replace(trainer, objective=clock.objective(trainer.objective))
    try:
        with clock.attached(model, trainer.optimizer), _traced(folder, trainer.ranks.device) as step_is_over:
            for step in train(timed, clock.waiting(data), steps):
                # What the caller does between the steps is in the time of the next one: the last may never ask for it.
                clock.switch("between steps")
                found.laps.append(clock.lap())
                with clock.stopped():
                    found.write()
                    step_is_over()
                yield step
    finally:
        noted.remove()


@contextmanager
def _traced(folder: Path, device: torch.device) -> Iterator[Callable[[], None]]:
    """Records the operators of a few steps; gives what is to be called after each."""

    def save(recorded: Any) -> None:
        by = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
        table = recorded.key_averages().table(sort_by=by, row_limit=_OPERATORS, max_name_column_width=60)
        with _writing(folder):
            (folder / "operators.txt").write_text(table, encoding="utf-8")
            recorded.export_chrome_trace(str(folder / "trace.json"))

    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    plan = schedule(skip_first=1, wait=0, warmup=1, active=_TRACED, repeat=1)
    with profile(activities=kinds, schedule=plan, on_trace_ready=save, profile_memory=True) as recorded:
        yield recorded.step


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise unwritable(folder, error) from error
