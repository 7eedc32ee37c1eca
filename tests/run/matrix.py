"""Runs killed in their second epoch and resumed with another number of processes and workers, beside one that wasn't.

``python -m tests.run.matrix [--streamed]`` goes through 1, 2 and 4 processes and 0, 1 and 3 workers, on the rows of a
file or on shards that a web server gives, and prints what came out.
"""

import itertools
import json
import multiprocessing
import os
import random
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Thread
from typing import Any, Final, NamedTuple

import torch
import yaml

from mmsft.data.shards import build
from mmsft.run import execute, load_run
from tests.makers import Lab, lines, opened, write_rows

ROWS: Final = 36
BATCH: Final = 4
EPOCH: Final = ROWS // BATCH
EPOCHS: Final = 3
SECONDS: Final = 120


class Setting(NamedTuple):
    """With how many processes a part of a run trains, and how many data workers each of them has."""

    ranks: int
    workers: int


ALL: Final = tuple(Setting(*pair) for pair in itertools.product((1, 2, 4), (0, 1, 3)))


@dataclass(frozen=True)
class Cell:
    """A run that was killed and went on.

    Attributes:
        killed: how it began.
        resumed: how it went on.
        step: steps that were in its log when it was killed.
        same_order: each step's chained hash of the order is that of the run that wasn't killed.
        apart: the most that a step's loss differs from that run's, relative.
        same_ledger: so are the lines of the ledger.
    """

    killed: Setting
    resumed: Setting
    step: int
    same_order: bool
    apart: float
    same_ledger: bool


def config(folder: Path, sources: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns a run on these sources, as `Lab` has them; an eps of 1 makes Adam nearly linear in the gradient."""
    lab = Lab(folder)
    stage = lab.stage(
        recipe=lab.recipe(sources=list(sources), budget=0.5),
        duration=f"{EPOCHS} epochs",
        batch=f"{BATCH} examples",
        optimizer={"eps": 1.0},
    )
    return lab.config("run", [stage], save={"every": "1 step"})


def files(folder: Path) -> list[dict[str, Any]]:
    """Makes what a run needs, and returns its sources: rows with pictures and without, one of them broken."""
    lab = Lab.make(folder)
    write_rows(folder / "rows.jsonl", [*lab.rows(ROWS - 1), {"conversations": "none"}])
    return lab.recipe()["sources"]  # type: ignore[no-any-return]


@contextmanager
def shards(folder: Path) -> Iterator[list[dict[str, Any]]]:
    """Serves such rows in shards of a few each, which are fetched when it is their turn; one picture is broken."""
    near = files(folder)
    (folder / "images" / "teal.png").write_bytes(b"broken")
    mixture = opened({"sources": near})
    build(mixture, mixture.train, folder / "shards", "train", size=6_000)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder / "shards")))
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        path = f"http://127.0.0.1:{server.server_port}/train.build.json"
        yield [{"path": path, "urls": "any", "format": "conversation", "name": "rows"}]
    finally:
        server.shutdown()
        server.server_close()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def context() -> ForkServerContext:
    """Returns a clean process that has imported all there is to import: its children start in a moment."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload([__name__, "mmsft.run", "transformers.models.llama", "accelerate"])
    return made


def train(file: str, rank: int, ranks: int, port: int) -> None:
    """Trains as one of several processes, as torchrun starts them; what it says goes to a file beside the config."""
    with Path(file).with_suffix(f".{rank}.log").open("w", encoding="utf-8") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    multiprocessing.set_start_method("fork", force=True)  # of the data workers
    os.environ["ACCELERATE_USE_CPU"] = "true"
    os.environ["TQDM_DISABLE"] = "1"
    if ranks > 1:
        here = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_PORT": port}
        os.environ.update({"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in here.items()}})
    torch.set_num_threads(1)
    for _ in execute(load_run(file)):
        pass


def start(server: ForkServerContext, file: Path, setting: Setting) -> list[BaseProcess]:
    """Starts a part of a run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    made = yaml.safe_load(file.read_text(encoding="utf-8")) | {"workers": setting.workers}
    file.write_text(yaml.safe_dump(made), encoding="utf-8")
    processes: list[BaseProcess] = [
        server.Process(target=train, args=(str(file), rank, setting.ranks, port)) for rank in range(setting.ranks)
    ]
    for process in processes:
        process.start()
    return processes


def written(folder: Path) -> list[dict[str, Any]]:
    """Returns the steps in a run's log."""
    file = folder / "log.jsonl"
    if not file.exists():
        return []
    whole = file.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()
    return [line for line in map(json.loads, whole) if "order" in line]


def killed_and_resumed(
    server: ForkServerContext, made: Mapping[str, Any], name: str, killed: Setting, resumed: Setting, seed: int
) -> Cell:
    """Kills a run in its second epoch, lets it go on, and compares it with the run ``calm`` beside it."""
    folder = Path(made["out"]).with_name(name)
    file = folder.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(dict(made) | {"out": str(folder)}), encoding="utf-8")
    at = EPOCH + random.Random(seed).randrange(1, EPOCH - 1)
    processes = start(server, file, killed)
    patience = time.monotonic() + SECONDS
    while len(written(folder)) < at and all(it.is_alive() for it in processes) and time.monotonic() < patience:
        time.sleep(0.002)
    alive = [process.is_alive() for process in processes]
    for process in processes:
        process.kill()
        process.join()
    steps = len(written(folder))
    assert all(alive), f"{name}: ended by itself after {steps} steps"
    assert at <= steps < EPOCH * EPOCHS
    finish(start(server, file, resumed), file)
    return compared(folder, folder.with_name("calm"), killed, resumed, steps)


def finish(processes: Sequence[BaseProcess], file: Path) -> None:
    """Waits for the end of a part."""
    for process in processes:
        process.join(SECONDS)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert not any(codes), (codes, file.with_suffix(".0.log").read_text(encoding="utf-8")[-2000:])


def calm(server: ForkServerContext, made: Mapping[str, Any]) -> None:
    """Trains without being killed, as one process without workers."""
    folder = Path(made["out"]).with_name("calm")
    file = folder.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(dict(made) | {"out": str(folder)}), encoding="utf-8")
    finish(start(server, file, Setting(1, 0)), file)


def compared(folder: Path, other: Path, killed: Setting, resumed: Setting, step: int) -> Cell:
    """Compares two run folders."""
    ours, theirs = written(folder), written(other)
    assert len(ours) == len(theirs) == EPOCH * EPOCHS
    losses = [(one["loss"], two["loss"]) for one, two in zip(ours, theirs, strict=True)]
    ledgers = [
        sorted((line["step"], line["row"], line["fate"]) for line in lines(run / "ledger.jsonl"))
        for run in (folder, other)
    ]
    assert ledgers[1]
    return Cell(
        killed,
        resumed,
        step,
        same_order=[one["order"] for one in ours] == [two["order"] for two in theirs],
        apart=max(abs(one - two) / two for one, two in losses),
        same_ledger=ledgers[0] == ledgers[1],
    )


def main() -> None:
    """Goes through all settings, each resumed as the next one."""
    print("| killed (processes x workers) | after step | resumed | same order | same ledger | losses apart, at most |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as made_in, ExitStack() as held:
        os.environ["MMSFT_CACHE"] = f"{made_in}/cache"
        server = context()
        streamed = "--streamed" in sys.argv
        sources = held.enter_context(shards(Path(made_in))) if streamed else files(Path(made_in))
        made = config(Path(made_in), sources)
        calm(server, made)
        for number, killed in enumerate(ALL):
            resumed = ALL[(number + 4) % len(ALL)]
            cell = killed_and_resumed(server, made, f"run{number}", killed, resumed, number)
            print(
                f"| {killed.ranks} x {killed.workers} | {cell.step} of {EPOCH * EPOCHS} | {resumed.ranks} x "
                f"{resumed.workers} | {cell.same_order} | {cell.same_ledger} | {cell.apart:.1e} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
