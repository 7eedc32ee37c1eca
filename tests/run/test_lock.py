import multiprocessing
from pathlib import Path

import pytest

from mmsft.errors import ConfigError
from mmsft.run import execute
from mmsft.run.lock import locked
from tests.makers import Lab, finish

pytest.importorskip("fcntl")


def attempt(folder: Path) -> str:
    """Returns what another process is told that wants to train in the folder."""
    context = multiprocessing.get_context("fork")
    answer, ours = context.Pipe(duplex=False)

    def child() -> None:
        try:
            with locked(folder):
                ours.send("free")
        except ConfigError as error:
            ours.send(str(error))

    process = context.Process(target=child)
    process.start()
    process.join(30)
    told: str = answer.recv()
    return told


def test_a_run_folder_is_trained_in_by_one_process_at_a_time(lab: Lab) -> None:
    run = lab.run("a")
    events = execute(run)
    next(events)
    assert attempt(run.folder).startswith(f"out: another process trains in {run.folder}")
    events.close()
    assert attempt(run.folder) == "free"
    finish(run)
    assert attempt(run.folder) == "free"


def test_a_child_does_not_keep_the_lock_of_its_parent(tmp_path: Path) -> None:
    # A data worker lives for some seconds after its parent was killed.
    with locked(tmp_path):
        worker = multiprocessing.get_context("fork").Event()
        process = multiprocessing.get_context("fork").Process(target=worker.wait, args=(30,))
        process.start()
    assert attempt(tmp_path) == "free"
    worker.set()
    process.join(30)
