"""Two processes learn what one does, and end as one."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mmsft.run import load_run
from tests.makers import Lab, finish, lines, losses, tensors_of, write_rows

ROOT = Path(__file__).parents[2]


def launch(*arguments: object, ranks: int = 2) -> list[subprocess.CompletedProcess[str]]:
    """Runs Python in several processes over gloo, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {
        **os.environ,
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *output)
        for process, output in zip(processes, outputs, strict=True)
    ]


def stages(lab: Lab) -> list[dict[str, Any]]:
    """First the adapter; then tower, adapter and LoRA, on steps of two rows of which one is often text."""
    # An eps of 1 makes Adam nearly linear in the gradient; else it would turn rounding of tiny gradients into steps.
    shared = {
        "recipe": lab.recipe(validation={"fraction": 0.2}, budget=0.5),
        "optimizer": {"eps": 1.0},
        "evaluate": {"every": "1 epoch"},
    }
    every = {"towers.image": {"lr": 0.1}, "decoder.lora": {"lr": 0.1}}
    first = lab.stage("align", batch="5 examples", duration="1 epoch", train={"towers.image.adapter": {"lr": 0.1}})
    return [first | shared, lab.stage("all", batch="2 examples", duration="1 epoch", train=every) | shared]


def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    lab = Lab.make(tmp_path, rows=15)
    (tmp_path / "images" / "teal.png").write_bytes(b"broken")
    one = lab.run("one", stages(lab))
    finish(one)
    two = lab.write(lab.config("two", stages(lab)))
    for done in launch("-m", "mmsft", "train", two):
        assert done.returncode == 0, done.stderr
    folder = load_run(two).folder
    for (*step, loss), (*other, other_loss) in zip(losses(one.folder), losses(folder), strict=True):
        assert step == other
        assert other_loss == pytest.approx(loss, rel=1e-6)  # fp32 sums in another order
    ours, theirs = tensors_of(one.folder), tensors_of(folder)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, atol=1e-6, rtol=1e-5)
    for file, keys in [("log.jsonl", ("order", "targets", "tokens")), ("ledger.jsonl", ("row", "fate", "step"))]:
        found = [
            sorted(str([line.get(key) for key in keys]) for line in lines(run / file)) for run in (one.folder, folder)
        ]
        assert found[0] == found[1]
    held_out = [
        [line["held_out_loss"] for line in lines(run / "log.jsonl") if "held_out_loss" in line]
        for run in (one.folder, folder)
    ]
    assert len(held_out[0]) == 4
    assert held_out[1] == pytest.approx(held_out[0], rel=1e-6)


def test_an_error_of_one_row_too_many_ends_all_processes(tmp_path: Path) -> None:
    lab = Lab.make(tmp_path, rows=8)
    write_rows(tmp_path / "rows.jsonl", [*lab.rows(7), {"conversations": "none"}])
    config = lab.write(lab.config("two", [lab.stage(duration="2 epochs")]))
    for done in launch("-m", "mmsft", "train", config):
        assert done.returncode == 2, done.stderr
        assert "rows seen are lost" in done.stderr
        assert "Traceback" not in done.stderr


FULL_DISK = """
import os, resource, signal, sys
from mmsft.errors import MmsftError
from mmsft.run import execute, load_run
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    for _, step, _ in execute(load_run(sys.argv[1])):
        if step.number == 3 and os.environ["RANK"] == "0":
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
except MmsftError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


@pytest.mark.parametrize(("size", "place"), [(3500, "00-align-0000006"), (900, r"log\.jsonl")])
def test_a_full_disk_of_the_main_process_ends_all_processes(tmp_path: Path, size: int, place: str) -> None:
    lab = Lab.make(tmp_path, rows=8)
    config = lab.write(lab.config("two", [lab.stage(duration="9 steps")], save={"every": "6 steps"}))
    for done in launch("-c", FULL_DISK, config, size):
        assert done.returncode == 1, done.stderr
        assert re.search(rf"^CheckpointError: .*{place}.*File too large", done.stderr, re.MULTILINE), done.stderr


MEETINGS = """
import os
from mmsft.errors import DataError, MmsftError
from mmsft.parallel import Ranks

ranks = Ranks("fp32")

def told(body):
    try:
        body()
    except MmsftError as error:
        print(f"{type(error).__name__}: {error}")
    except ZeroDivisionError:
        print("mine")

def first(failing):
    with ranks.main_first():
        print("enters")
        if ranks.rank == failing:
            raise DataError(f"{failing} fails")

def together():
    with ranks.together():
        1 / ranks.rank

def deferred():
    with ranks.deferred():
        if not ranks.main:
            raise DataError("later")
    print("goes on", ranks.failing)
    with ranks.together():
        pass

for body in (lambda: first(0), lambda: first(1), together, deferred):
    told(body)
"""


def test_an_error_of_one_process_is_raised_in_all() -> None:
    main, other = (done.stdout.splitlines() for done in launch("-c", MEETINGS))
    later = "DataError: later"
    assert main == ["enters", "DataError: 0 fails", "enters", "DataError: 1 fails", "mine", "goes on False", later]
    theirs = "MmsftError: process 0: ZeroDivisionError: division by zero"
    assert other == ["DataError: 0 fails", "enters", "DataError: 1 fails", theirs, "goes on True", later]
