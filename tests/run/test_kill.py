"""Killed at any moment, also inside a save, a run goes on as if it had never stopped, bit for bit."""

import multiprocessing
import random
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import pytest

from mmsft.run import execute, load_run
from mmsft.train import checkpoint as ckpt
from tests.makers import Lab, finish, lines, losses, weights, write_rows

KILLS = 12
"""In each of two tests; every third falls into a save."""


def child(config: str, pause: float) -> None:
    """Trains; saves take a while, so that kills find their way in."""
    multiprocessing.set_start_method("fork", force=True)  # of the data workers, as where no server is at work
    sync = ckpt._sync

    def slow_sync(path: Path) -> None:
        time.sleep(pause)
        sync(path)

    ckpt._sync = slow_sync
    for _ in execute(load_run(config)):
        time.sleep(pause)


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServerContext]:
    """A clean process that has imported all there is to import: its children start in a moment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        patch.setenv("OMP_NUM_THREADS", "1")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(
            [__name__, "tests.makers", "mmsft.run", "transformers.models.llama", "accelerate"]
        )
        yield context


def stages(lab: Lab) -> list[dict[str, Any]]:
    recipe = lab.recipe(validation={"fraction": 0.2}, budget=0.5)
    both = {"towers.image.adapter": {"lr": 1e-2}, "decoder.lora": {"lr": 1e-2}}
    evaluate = {"every": "5 steps", "patience": 50}
    return [
        lab.stage(recipe=recipe, duration="2 epochs", evaluate=evaluate),
        lab.stage("instruct", recipe=recipe, train=both, duration="10 epochs", batch="150 tokens", evaluate=evaluate),
    ]


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    lab = Lab.make(tmp_path)
    (tmp_path / "images" / "teal.png").write_bytes(b"broken")  # so that the ledger has something to tell
    return lab


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_killed_at_any_moment_ends_with_the_same_bits(server: ForkServerContext, lab: Lab, workers: int) -> None:
    settings: dict[str, Any] = {"model": lab.model(lora={"r": 2, "alpha": 4, "dropout": 0.2}), "workers": workers}
    calm = lab.run("calm", stages(lab), **settings)
    finish(calm)
    killed = lab.run("killed", stages(lab), **settings)
    config = str(lab.folder / "killed.yaml")
    rng = random.Random(workers)
    inside = 0
    for number in range(KILLS):
        process = server.Process(target=child, args=(config, 0.005))
        process.start()
        moment = in_a_save if number % 3 == 0 else after_a_few_steps
        moment(killed.folder, rng, process)
        process.kill()
        process.join()
        assert process.exitcode == -9, "the run was over before it was killed"
        inside += bool(list((killed.folder / "checkpoints").glob(".saving-*")))
    assert inside >= 4
    finish(load_run(config))
    assert losses(killed.folder) == losses(calm.folder)
    assert weights(killed.folder) == weights(calm.folder)
    for file in ("log.jsonl", "ledger.jsonl"):
        assert timeless(killed.folder / file) == timeless(calm.folder / file)
    for folder in (calm.folder, killed.folder):
        assert not list((folder / "checkpoints").glob(".*"))
    names = [
        sorted(path.name for path in (folder / "checkpoints").iterdir()) for folder in (calm.folder, killed.folder)
    ]
    assert names[0] == names[1]


def after_a_few_steps(folder: Path, rng: random.Random, process: ForkServerProcess) -> None:
    aim = size(folder / "log.jsonl") + 400 * rng.randint(0, 2)
    wait(lambda: size(folder / "log.jsonl") >= aim, process)
    time.sleep(rng.uniform(0, 0.03))


def in_a_save(folder: Path, rng: random.Random, process: ForkServerProcess) -> None:
    checkpoints = folder / "checkpoints"
    there = {path.stat().st_ino for path in checkpoints.glob(".saving-*")}
    wait(lambda: any(path.stat().st_ino not in there for path in checkpoints.glob(".saving-*")), process)
    time.sleep(rng.uniform(0, 0.015))


def wait(until: Callable[[], bool], process: ForkServerProcess) -> None:
    patience = time.monotonic() + 60
    while process.is_alive() and time.monotonic() < patience:
        try:
            if until():
                return
        except FileNotFoundError:
            continue  # renamed between being listed and being looked at
        time.sleep(0.0005)


def size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def timeless(file: Path) -> list[dict[str, Any]]:
    """Returns the lines without what depends on when and how often a run was begun."""
    return [{**line, "seconds": None} for line in lines(file) if "media" not in line]


def test_what_breaks_off_early_goes_on_later(lab: Lab) -> None:
    write_rows(lab.folder / "rows.jsonl", lab.rows(24))
    calm, broken = lab.run("calm", stages(lab)), lab.run("broken", stages(lab))
    finish(calm)
    for stop in (3, 7, 11):
        for number, _ in enumerate(execute(load_run(lab.folder / "broken.yaml")), 1):
            if number == stop:
                break
    finish(broken)
    assert losses(broken.folder) == losses(calm.folder)
    assert weights(broken.folder) == weights(calm.folder)
