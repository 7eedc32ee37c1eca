"""Shows a run on the terminal while it trains; of several processes the main one does."""

import math
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from mmsft.assistant import Assistant
from mmsft.config import StageConfig
from mmsft.parallel import is_main
from mmsft.run.load import Run
from mmsft.run.summary import summary
from mmsft.train.loop import Step

Event = tuple[StageConfig, Step, Assistant]
Item = TypeVar("Item", bound=Event)


def show(run: Run, events: Iterable[Event]) -> None:
    """Trains; says what learns and what is frozen, and at each stage's end what became of the rows and the loss."""
    before: StageConfig | None = None
    told = 0
    console = Console(highlight=False, soft_wrap=True)
    for stage, _, assistant in watch(events):
        if before is None and is_main():
            console.print(run.describe(assistant.model))
        elif stage is not before and is_main():
            console.print(summary(run, told), markup=False)
            told = run.config.stages.index(stage)
        before = stage
    if is_main():
        console.print(summary(run, told), markup=False)
        console.print(f"{'done' if before else 'already complete'}: {run.folder}")


def watch(events: Iterable[Item]) -> Iterator[Item]:
    """Passes a run's events on, with a progress bar a stage: loss, tokens a second, time to go.

    Where the output isn't a terminal, a plain line is printed every ten seconds instead.
    """
    bar = _bar()
    tasks: dict[str, TaskID] = {}
    loss, rate, printed = Smooth(), Smooth(), time.monotonic()
    with ExitStack() as shown:
        for event in events:
            stage, step, assistant = event
            if not assistant.ranks.main:
                yield event
                continue
            if not tasks:
                shown.enter_context(bar)
            if stage.name not in tasks:
                loss, rate = Smooth(), Smooth()
                tasks[stage.name] = bar.add_task(stage.name, total=step.steps, loss=math.nan, rate=math.nan)
            over = step.number == step.steps
            # Reading the loss waits for the device, so it is read as often as it is shown.
            if over or time.monotonic() - printed > (0.5 if sys.stderr.isatty() else 10):
                printed = time.monotonic()
                value = loss.add(step.loss)
                speed = rate.add(step.tokens / max(step.seconds, 1e-9))
                bar.update(tasks[stage.name], completed=step.number, loss=value, rate=speed)
                if bar.disable:
                    bar.console.print(
                        f"{stage.name} {step.number}/{step.steps} loss {value:.4f} {speed:,.0f} tokens/s",
                        soft_wrap=True,
                    )
            yield event


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TextColumn("{task.fields[rate]:,.0f} tokens/s"),
        TimeRemainingColumn(),
        console=Console(stderr=True, highlight=False),
        refresh_per_second=4,
        disable=not sys.stderr.isatty(),
    )


class Smooth:
    """An exponential mean that starts at the first value; what isn't a number leaves it as it is."""

    def __init__(self, keep: float = 0.8) -> None:
        self._keep = keep
        self._value = math.nan

    def add(self, value: float) -> float:
        """Takes a value; returns the mean, NaN before the first."""
        if math.isnan(self._value):
            self._value = value
        elif not math.isnan(value):
            self._value = self._keep * self._value + (1 - self._keep) * value
        return self._value
