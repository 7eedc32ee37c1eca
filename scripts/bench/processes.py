"""Runs Python in the environments of the sides, each time in a fresh process, and watches the memory it takes."""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from scripts.bench.workloads import OURS, SIDES, Job

ROOT: Final = Path(__file__).parents[2]
VENVS: Final = {name: ROOT / ".venv.bench" / name for name in ("peers", "llamafactory")}
EVERY_S: Final = 0.5
_LINES: Final = 12
"""Of a log that are shown when a process fails."""


class Failed(Exception):
    """A process ended with an error; the message says which, and shows the end of its log."""


@dataclass(slots=True)
class Ran:
    """What a process printed, and the most memory that it and its children held, in GB."""

    printed: str
    peak_gb: float


def train(job: Job, out: Path) -> dict[str, Any]:
    """Runs a job; returns its track and the most memory it held, in GB, and adds them to ``tracks.jsonl``.

    Raises:
        Failed: it ended with an error, or too soon.
    """
    with tempfile.TemporaryDirectory(dir=out) as folder:
        job = replace(job, out=folder)
        side = SIDES[job.side]
        log = out / "logs" / f"{job.workload}-{job.precision}-{job.purpose}-{job.side.replace(' ', '_')}.log"
        ran = python(side.venv, ["-m", side.module, job.write()], log)
        track: dict[str, Any] = json.loads(Path(folder, "track.json").read_text(encoding="utf-8"))
    if len(track["ends"]) != job.steps:
        raise Failed(f"{job.side} made {len(track['ends'])} steps of {job.steps}; see {log}")
    track["peak_gb"] = ran.peak_gb
    with (out / "tracks.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"job": asdict(job), "track": track}) + "\n")
    return track


def python(venv: str, arguments: list[str], log: Path) -> Ran:
    """Runs Python in an environment, what it says in a file.

    Raises:
        Failed: it ended with an error.
    """
    program = sys.executable if venv == OURS else str(VENVS[venv] / "bin" / "python")
    settings = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(
            [program, *arguments], stdout=subprocess.PIPE, stderr=errors, text=True, env={**os.environ, **settings}
        )
        held = [0]
        watcher = threading.Thread(target=watch, args=(process, held))
        watcher.start()
        printed, _ = process.communicate()
        watcher.join()
    if process.returncode:
        tail = "\n".join(log.read_text(encoding="utf-8").splitlines()[-_LINES:])
        raise Failed(f"{' '.join(arguments[:3])} ended with {process.returncode}; {log} ends:\n{tail}")
    return Ran(printed, held[0] / 1e9)


def watch(process: "subprocess.Popen[str]", held: list[int]) -> None:
    """Keeps the most bytes that a process and its children hold together; Linux alone tells.

    The process's own peak, which the kernel remembers, and beside it what its children hold, of a page that several
    share its part each. The children's part counts twice so, which is never in favour of a side that has them.
    """
    while process.poll() is None:
        children = sum(tell(pid, "smaps_rollup", "Pss:") for pid in below(process.pid))
        held[0] = max(held[0], children + tell(process.pid, "status", "VmHWM:"))
        time.sleep(EVERY_S)


def below(pid: int) -> list[int]:
    """Returns the children of a process, and theirs."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    except OSError:  # it is over
        return []
    return [one for child in children for one in (int(child), *below(int(child)))]


def tell(pid: int, file: str, key: str) -> int:
    """Returns a process's memory by a line of one of its files, in bytes."""
    try:
        lines = Path(f"/proc/{pid}/{file}").read_text(encoding="utf-8").splitlines()
    except OSError:  # it is over
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))
