"""Machines that a run may train on: this one, as it is measured, and well-known GPUs, by their data sheets."""

import ctypes
import os
import re
import resource
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import torch
from torch import nn

from mmsft.errors import ConfigError, suggest
from mmsft.run.simulate import Op

_M_MMAP_THRESHOLD: Final = -3
_LARGE: Final = 4 * 2**20
"""Bytes from which on a tensor's memory is given back; each time it is taken, the system has to clear it."""
_FEW_SECONDS: Final = 0.25
"""That each rate of this machine is measured for."""


class _Sheet(NamedTuple):
    """A GPU's data sheet: GB of memory, TFLOP/s (dense) in bf16 and in fp32 without TF32, GB/s of its memory."""

    memory: int
    bf16: float
    fp32: float
    bandwidth: int


GPUS: Final[Mapping[str, _Sheet]] = {
    "A10-24G": _Sheet(24, 125, 31.2, 600),
    "A100-40G": _Sheet(40, 312, 19.5, 1555),
    "A100-80G": _Sheet(80, 312, 19.5, 2039),
    "A6000-48G": _Sheet(48, 155, 38.7, 768),
    "B200-180G": _Sheet(180, 2250, 75, 7700),
    "H100-80G": _Sheet(80, 989, 67, 3350),
    "H200-141G": _Sheet(141, 989, 67, 4800),
    "L4-24G": _Sheet(24, 121, 30.3, 300),
    "L40S-48G": _Sheet(48, 362, 91.6, 864),
    "RTX3090-24G": _Sheet(24, 71, 35.6, 936),
    "RTX4090-24G": _Sheet(24, 165, 82.6, 1008),
}
"""GPUs that compute in bf16, by name and memory."""

_REACHED: Final = 0.6
"""Part of a GPU's data sheet that large matrix products reach, as a rule; of its bandwidth no less."""
_LAUNCH: Final = 10e-6
"""Seconds that Python and torch take to start an operator; a GPU waits for it where the operator itself is shorter."""
_LEFT: Final = 0.92
"""Part of a GPU's memory that is left to tensors: the driver's context and what the allocator can't hand out."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Where a run trains: processes that each hold the whole model.

    Attributes:
        name: as the user knows it.
        count: processes.
        gpu: whether they compute on GPUs.
        memory: bytes that each process can have for the model and its steps.
        process: bytes that each process takes without a model; of a GPU's memory none.
        narrow: products and sums a second in 16 bits.
        wide: in fp32.
        bandwidth: bytes of memory a second.
        launch: seconds that each operator takes at least.
        measured: the rates were measured here.
    """

    name: str
    count: int
    gpu: bool
    memory: int
    process: int
    narrow: float
    wide: float
    bandwidth: float
    launch: float
    measured: bool

    def seconds(self, ops: Iterable[Op]) -> float:
        """Returns how long operators take: each as long as its arithmetic, its memory or its start."""
        return sum(
            max(op.flops / (self.narrow if op.narrow else self.wide), op.moved / self.bandwidth, self.launch)
            for op in ops
        )


def named(text: str) -> Machine:
    """Returns a machine of GPUs by name, e.g. ``8xA100-80G``, ``L4-24G``, ``2xH100``.

    Raises:
        ConfigError: there is no such GPU in the table.
    """
    match = re.fullmatch(r"(?:([1-9]\d{0,4})\s*x)?\s*(\S+)", text.strip(), re.IGNORECASE)
    count, name = (int(match[1] or 1), match[2].upper()) if match else (1, text)
    # A name without its memory is enough where there is one such GPU.
    found = [known for known in GPUS if name in {known, known.partition("-")[0]}]
    if len(found) != 1:
        listed = ", ".join(GPUS)
        why = f"{' or '.join(found)}?" if found else f"no GPU {name!r} is known{suggest(name, GPUS)};"
        raise ConfigError(f"--gpus {text!r}: {why} write NUMBERxNAME, e.g. 8xA100-80G; the names are {listed}")
    sheet = GPUS[found[0]]
    return Machine(
        name=f"{count} x {found[0]}",
        count=count,
        gpu=True,
        memory=int(sheet.memory * 1e9 * _LEFT),
        process=0,
        narrow=sheet.bf16 * 1e12 * _REACHED,
        wide=sheet.fp32 * 1e12 * _REACHED,
        bandwidth=sheet.bandwidth * 1e9 * _REACHED,
        launch=_LAUNCH,
        measured=False,
    )


def this_machine() -> Machine:
    """Returns this machine, for one process, with its free memory; its rates are measured for about two seconds."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    cores = f"{torch.get_num_threads()} threads of a CPU"
    return Machine(
        name=f"{torch.cuda.get_device_name() if cuda else cores}, here",
        count=1,
        gpu=cuda,
        memory=int(torch.cuda.mem_get_info()[0]) if cuda else free_memory(),
        process=0 if cuda else resident(),
        narrow=_products(device, torch.bfloat16),
        wide=_products(device, torch.float32),
        bandwidth=_copies(device),
        launch=_starts(device),
        measured=True,
    )


def free_memory() -> int:
    """Returns the bytes of main memory that this process could still take: the machine's, or its container's."""
    free = _told("/proc/meminfo").get("MemAvailable") or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    most, used = (Path("/sys/fs/cgroup") / file for file in ("memory.max", "memory.current"))
    try:
        return min(free, int(most.read_text()) - int(used.read_text()))
    except (OSError, ValueError):  # no container of this kind, or one without a limit ("max")
        return free


def resident(*, most: bool = False) -> int:
    """Returns the bytes of main memory that this process holds, or the most that it ever held."""
    told = _told("/proc/self/status").get("VmHWM" if most else "VmRSS")
    # Linux's rusage begins with what the parent held, and other systems have nothing else.
    return told or _most(resource.RUSAGE_SELF)


def most_of_children() -> int:
    """Returns the most bytes of main memory that one of the processes held that this one has started and outlived."""
    return _most(resource.RUSAGE_CHILDREN)


def _most(who: int) -> int:
    return resource.getrusage(who).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def give_back_freed_memory() -> None:
    """Has glibc give the memory of each large tensor back to the system when it is freed.

    Left to itself it learns to keep blocks of up to 32 MB. Gradients come to lie between them, so that the activations
    of the next micro-batch find no room and take more: with packs of 4,096 tokens a fifth of the whole process.
    """
    if "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return  # the user has chosen
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(_M_MMAP_THRESHOLD, _LARGE)


def _told(file: str) -> dict[str, int]:
    """Returns the bytes that one of Linux's tables tells by name; nothing on other systems."""
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    words = (line.split() for line in lines if line.endswith(" kB"))
    return {name.rstrip(":"): int(number) * 1024 for name, number, *_ in words}


def _products(device: torch.device, dtype: torch.dtype) -> float:
    """Measures products and sums a second in the best of a few sizes."""
    rates = []
    for size in (4096, 8192) if device.type == "cuda" else (512, 1024):
        a = torch.randn(size, size, device=device).to(dtype)
        rates.append(2 * size**3 / _time(device, lambda a=a: a @ a))  # type: ignore[misc]
    return max(rates)


def _copies(device: torch.device) -> float:
    bytes = 2**30 if device.type == "cuda" else 2**27
    source = torch.ones(bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * bytes / _time(device, lambda: target.copy_(source))


def _starts(device: torch.device) -> float:
    layer, one = nn.Linear(8, 8, device=device), torch.ones(8, 8, device=device)
    return _time(device, lambda: layer.forward(one), repeats=200)


def _time(device: torch.device, work: Callable[[], object], repeats: int = 1) -> float:
    """Returns the seconds of the fastest of some tries."""
    wait: Callable[[], None] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    work()
    wait()
    best, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < _FEW_SECONDS:
        start = time.perf_counter()
        for _ in range(repeats):
            work()
        wait()
        best = min(best, (time.perf_counter() - start) / repeats)
    return best
