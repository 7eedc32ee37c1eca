"""Processes and devices, by accelerate: the only module that may speak to torch.distributed."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Literal, TypeVar

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs, LoggerType, gather_object
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mmsft.errors import ConfigError, suggest

Precision = Literal["fp32", "bf16"]
V = TypeVar("V")
_EXTRAS = ("tensorboard", "wandb")


def check_loggers(loggers: Sequence[str]) -> None:
    """Tells whether trackers can be opened.

    Raises:
        ConfigError: accelerate knows none of that name, or its package isn't installed.
    """
    known = [kind.value for kind in LoggerType if kind is not LoggerType.ALL]
    for name in loggers:
        if name not in known:
            raise ConfigError(f"loggers: no logger {name!r}{suggest(name, known)}; there are {', '.join(known)}")
        if LoggerType(name) not in get_available_trackers():
            package = f"'mmsft[{name}]'" if name in _EXTRAS else name
            raise ConfigError(f"loggers: {name} isn't installed; pip install {package}, or leave it out")


class Ranks:
    """The processes that train together; one of them where nothing was launched.

    Args:
        precision: of the computations; bf16 is autocast over whatever the weights are held in.
        loggers: accelerate's trackers.
        folder: where trackers write.
    """

    def __init__(self, precision: Precision, loggers: tuple[str, ...] = (), folder: Path | None = None) -> None:
        check_loggers(loggers)
        # Precision is ours (autocast below), so that two runs in one process may differ in it.
        self._accelerator = Accelerator(
            mixed_precision="no",
            log_with=list(loggers) or None,
            project_dir=folder,
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)],
        )
        self._precision = precision

    @property
    def rank(self) -> int:
        """This process's number."""
        return int(self._accelerator.process_index)

    @property
    def count(self) -> int:
        """How many processes there are."""
        return int(self._accelerator.num_processes)

    @property
    def main(self) -> bool:
        """Whether this process writes the run folder."""
        return bool(self._accelerator.is_main_process)

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        device: torch.device = self._accelerator.device
        return device

    def wrap(self, model: nn.Module) -> nn.Module:
        """Brings the model to the device and, with several processes, synchronises its gradients."""
        # What an earlier stage wrapped would go on answering the gradients of the same parameters.
        self._accelerator.free_memory()
        wrapped: nn.Module = self._accelerator.prepare_model(model)
        return wrapped

    def autocast(self) -> AbstractContextManager[object]:
        """Returns the context in which the forward pass computes."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self._precision == "bf16")

    def accumulate(self, model: nn.Module, last: bool) -> AbstractContextManager[object]:
        """Returns the context of one micro-batch: gradients travel between processes with the last only."""
        if isinstance(model, DistributedDataParallel) and not last:
            return model.no_sync()
        return nullcontext()

    def total(self, values: Tensor) -> Tensor:
        """Returns the sum over the processes, on the device, without waiting for it."""
        total: Tensor = self._accelerator.reduce(values, reduction="sum")
        return total

    def gather(self, value: V) -> list[V]:
        """Returns what each process gave, in their order."""
        if self.count == 1:
            return [value]
        gathered: list[V] = gather_object([value])
        return gathered

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Lets the main process do something before the others, e.g. fill a cache."""
        with self._accelerator.main_process_first():
            yield

    def wait(self) -> None:
        """Waits until all processes are here."""
        self._accelerator.wait_for_everyone()

    @contextmanager
    def trackers(self, name: str) -> Iterator[None]:
        """Keeps the loggers open for a while, under the run's name."""
        self._accelerator.init_trackers(name)
        try:
            yield
        finally:
            # Not `end_training`: it takes the process group down, and a run may still be scored.
            for tracker in self._accelerator.trackers:
                tracker.finish()

    def track(self, values: dict[str, float], step: int) -> None:
        """Sends values to the loggers."""
        self._accelerator.log(values, step=step)
