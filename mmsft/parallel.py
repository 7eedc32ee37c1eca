"""Processes and devices, by accelerate: the only module that may speak to torch.distributed."""

import atexit
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Literal, TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, LoggerType, gather_object
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mmsft.errors import ConfigError, MmsftError, suggest

Precision = Literal["fp32", "bf16"]
V = TypeVar("V")
_EXTRAS = ("tensorboard", "wandb")
_SUPPORTED = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
_SHARDING = ("FSDP", "DEEPSPEED", "MEGATRON_LM")


def is_main() -> bool:
    """Tells whether this process, one of those of the last `Ranks`, is the one that writes and prints."""
    return bool(PartialState().is_main_process)


def _leave() -> None:
    """Gives gloo's threads time at exit.

    One of them may yet have to release the tensors of the last exchange, for which it needs the interpreter; where that
    is gone by then, the process aborts in place of its exit code. Nothing lets us wait for that thread.
    """
    time.sleep(0.2)


def refuse_sharding() -> None:
    """Looks at what `accelerate launch` asks for; accelerate itself would first look for its package.

    Raises:
        ConfigError: it would divide the model, which mmsft can't.
    """
    for kind in _SHARDING:
        if os.environ.get(f"ACCELERATE_USE_{kind}", "false").lower() in ("1", "true", "yes"):
            raise ConfigError(_unsupported(kind))


def _unsupported(kind: str) -> str:
    return (
        f"accelerate's distributed type is {kind}; mmsft trains in one process, or in several that each hold the whole "
        "model: launch it with `accelerate launch --multi_gpu` or `torchrun`, or choose so in `accelerate config`"
    )


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

    Raises:
        ConfigError: a logger can't be opened, accelerate is set up to divide the model, or the processes don't know of
            each other.
    """

    def __init__(self, precision: Precision, loggers: tuple[str, ...] = (), folder: Path | None = None) -> None:
        check_loggers(loggers)
        refuse_sharding()
        # Precision is ours (autocast below), so that two runs in one process may differ in it.
        self._accelerator = Accelerator(
            mixed_precision="no",
            log_with=list(loggers) or None,
            project_dir=folder,
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)],
        )
        if self._accelerator.distributed_type not in _SUPPORTED:
            raise ConfigError(_unsupported(self._accelerator.distributed_type.value))
        started = os.environ.get("WORLD_SIZE", "1")
        if self.count == 1 and started not in ("", "1"):
            raise ConfigError(
                f"WORLD_SIZE: {started} processes were started, and each of them believes itself alone; without a GPU "
                "set ACCELERATE_USE_CPU=true, or unset WORLD_SIZE if this is one process"
            )
        if self._accelerator.distributed_type == DistributedType.MULTI_CPU:
            atexit.unregister(_leave)
            atexit.register(_leave)
        self.precision = precision
        self._deferred: Exception | None = None

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

    @property
    def wide(self) -> torch.dtype:
        """The widest float of the device, for sums and counts: Apple's have none of 64 bits."""
        return torch.float32 if self.device.type == "mps" else torch.float64

    def wrap(self, model: nn.Module) -> nn.Module:
        """Brings the model to the device and, with several processes, synchronises its gradients."""
        # What an earlier stage wrapped would go on answering the gradients of the same parameters.
        self._accelerator.free_memory()
        wrapped: nn.Module = self._accelerator.prepare_model(model)
        return wrapped

    def autocast(self) -> AbstractContextManager[object]:
        """Returns the context in which the forward pass computes."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def accumulate(self, model: nn.Module, last: bool) -> AbstractContextManager[object]:
        """Returns the context of one micro-batch: gradients travel between processes with the last only."""
        if isinstance(model, DistributedDataParallel) and not last:
            return model.no_sync()
        return nullcontext()

    def placed(self, values: Sequence[float]) -> Tensor:
        """Brings numbers to the device, without waiting for what it computes."""
        host = torch.tensor(values, dtype=self.wide)
        if self.device.type == "cuda":
            # From ordinary memory a GPU copies only when it has done what was asked of it before.
            host = host.pin_memory()
        return host.to(self.device, non_blocking=True)

    def total(self, values: Tensor) -> Tensor:
        """Returns the sum over the processes, on the device, without waiting for it."""
        total: Tensor = self._accelerator.reduce(values, reduction="sum")
        return total

    def odds(self, number: int) -> int:
        """Returns what to add up over the processes to learn whether all of them have one number.

        The sum is then 0, in whatever order it is made; where one of them has another number it isn't. It is exact for
        numbers of 32 bits, and 2²⁰ processes, in the floats of a device with several: see `wide`.
        """
        return number * (self.count - 1) if self.rank == 0 else -number

    def fetch(self, values: Tensor) -> Callable[[], list[float]]:
        """Begins to bring values from the device; what it returns gives them.

        That waits for what was asked of the device until now, and not for what is asked of it after.
        """
        if values.device.type != "cuda":
            return values.tolist
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        host.copy_(values, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record(torch.cuda.current_stream(values.device))

        def read() -> list[float]:
            arrived.synchronize()
            found: list[float] = host.tolist()
            return found

        return read

    def gather(self, value: V) -> list[V]:
        """Returns what each process gave, in their order."""
        if self.count == 1:
            return [value]
        gathered: list[V] = gather_object([value])
        return gathered

    @contextmanager
    def together(self) -> Iterator[None]:
        """Lets each process do its part, without the others; then they wait for each other.

        Raises:
            MmsftError: it failed in one of them, or something that was deferred did; raised in all of them, so that
                none waits for one that is gone.
        """
        error = None
        try:
            yield
        except Exception as caught:  # whatever it is, the others must hear of it
            error = caught
        self._meet(error or self._deferred)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Keeps an error back until the processes meet in `together`; a process alone raises it at once."""
        try:
            yield
        except Exception as error:  # as above
            if self.count == 1:
                raise
            self._deferred = self._deferred or error

    @property
    def failing(self) -> bool:
        """Whether this process has deferred an error."""
        return self._deferred is not None

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Lets a machine's main process do something before its others, e.g. fill a cache.

        Raises:
            MmsftError: it failed in one of them; raised in all.
        """
        first, error = bool(self._accelerator.is_local_main_process), None
        if not first:
            self._meet(None)
        try:
            yield
        except Exception as caught:  # as above
            error = caught
        if first:
            self._meet(error)
        self._meet(error)

    def _meet(self, error: Exception | None) -> None:
        """Waits for the other processes; raises this one's error, or the first of theirs."""
        if self.count > 1:
            told = error
            if error is not None and not isinstance(error, MmsftError):
                # Its class may not travel, and in the other processes it needs a place.
                told = MmsftError(f"process {self.rank}: {type(error).__name__}: {error}")
            failed = [other for other in self.gather(told) if other is not None]
            error = error or next(iter(failed), None)
        if error is not None:
            raise error

    @contextmanager
    def trackers(self, name: str) -> Iterator[None]:
        """Keeps the loggers open for a while, under the run's name.

        Raises:
            ConfigError: one can't be opened.
        """
        with self.together():
            self._open_trackers(name)
        try:
            yield
        finally:
            # Not `end_training`: it takes the process group down, and a run may still be scored.
            for tracker in self._accelerator.trackers:
                tracker.finish()

    def _open_trackers(self, name: str) -> None:
        # W&B would write into the working directory.
        options = {"wandb": {"dir": self._accelerator.project_dir}}
        try:
            self._accelerator.init_trackers(name, init_kwargs=options)
        except Exception as error:  # each logger's package has its own: no key, no server, a name that it refuses
            names, reason = ", ".join(str(kind) for kind in self._accelerator.log_with), str(error).rstrip(".")
            raise ConfigError(f"loggers: {names}: {reason}; mend that, or leave the logger out") from error

    def track(self, values: dict[str, float], step: int) -> None:
        """Sends values to the loggers."""
        self._accelerator.log(values, step=step)
