"""Shows a run on the terminal while it trains."""

import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from mmsft.assistant import Assistant
from mmsft.config import StageConfig
from mmsft.run.load import Run
from mmsft.run.summary import summary
from mmsft.train.loop import Step

Event = tuple[StageConfig, Step, Assistant]
Item = TypeVar("Item", bound=Event)


def quiet_libraries() -> None:
    """Keeps transformers' own bars and remarks off the terminal; what matters to a user mmsft says itself."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def show(run: Run, events: Iterable[Event]) -> None:
    """Trains, and ends with what became of the rows and the loss, and where the results are."""
    done = False
    for _ in watch(events):
        done = True
    console = Console(highlight=False, soft_wrap=True)
    console.print(summary(run))
    console.print(f"{'done' if done else 'already complete'}: {run.folder}")


def watch(events: Iterable[Item]) -> Iterator[Item]:
    """Passes a run's events on, with a progress bar a stage: loss, tokens a second, time to go.

    Where the output isn't a terminal, a plain line is printed every ten seconds instead.
    """
    console = Console(stderr=True, highlight=False)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TextColumn("{task.fields[rate]:,.0f} tokens/s"),
        TimeRemainingColumn(),
        console=console,
        refresh_per_second=4,
        disable=not sys.stderr.isatty(),
    )
    tasks: dict[str, TaskID] = {}
    loss, rate, printed = Smooth(), Smooth(), time.monotonic()
    with bar:
        for event in events:
            stage, step, _ = event
            if stage.name not in tasks:
                loss, rate = Smooth(), Smooth()
                tasks[stage.name] = bar.add_task(stage.name, total=step.steps, loss=0.0, rate=0.0)
            over = step.number == step.steps
            speed = rate.add(step.tokens / max(step.seconds, 1e-9))
            # Reading the loss waits for the device, so it is read as often as it is shown.
            if over or time.monotonic() - printed > (0.5 if sys.stderr.isatty() else 10):
                printed = time.monotonic()
                value = loss.add(step.loss)
                bar.update(tasks[stage.name], completed=step.number, loss=value, rate=speed)
                if bar.disable:
                    console.print(
                        f"{stage.name} {step.number}/{step.steps} loss {value:.4f} {speed:,.0f} tokens/s",
                        soft_wrap=True,
                    )
            yield event


class Smooth:
    """An exponential mean that starts at the first value."""

    def __init__(self, keep: float = 0.8) -> None:
        self._keep = keep
        self._value: float | None = None

    def add(self, value: float) -> float:
        """Takes a value; returns the mean."""
        self._value = value if self._value is None else self._keep * self._value + (1 - self._keep) * value
        return self._value
