"""Two processes learn what one does, and end as one."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmsft.data.ledger import FATES
from mmsft.parallel import Ranks
from mmsft.run import load_run
from tests.makers import Lab, finish, lines, losses, row, saved, tensors_of, write_rows

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


def stages(lab: Lab, join: str | None = None) -> list[dict[str, Any]]:
    """First the adapter; then tower, adapter and LoRA, on steps of two rows of which one is often text."""
    # An eps of 1 makes Adam nearly linear in the gradient; else it would turn rounding of tiny gradients into steps.
    shared = {
        "recipe": lab.recipe(validation={"fraction": 0.2}, budget=0.5, join=join, loss_by="kind"),
        "optimizer": {"eps": 1.0},
        "evaluate": {"every": "1 epoch"},
    }
    every = {"towers.image": {"lr": 0.1}, "decoder.lora": {"lr": 0.1}}
    first = lab.stage("align", batch="5 examples", duration="1 epoch", train={"towers.image.adapter": {"lr": 0.1}})
    return [first | shared, lab.stage("all", batch="2 examples", duration="1 epoch", train=every) | shared]


def by_tag(folder: Path) -> list[dict[str, float]]:
    """Returns the losses by the tag's values, of steps and evaluations."""
    found = [line["loss_by_tag"] for line in lines(folder / "log.jsonl") if "loss_by_tag" in line]
    assert {name for each in found for name in each} == {"rows"}
    assert {name for each in found for name in each["rows"]} == {"short", "long"}
    return [each["rows"] for each in found]


def outcomes(folder: Path) -> list[dict[str, Any]]:
    """Returns what became of the rows of each stage, whose fates add up to them."""
    found = [
        {part: line[part]["sources"] for part in ("trained", "held_out")}
        for line in lines(folder / "log.jsonl")
        if "trained" in line
    ]
    assert len(found) == 2
    assert [stage["trained"]["rows"]["rows"] + stage["held_out"]["rows"]["rows"] for stage in found] == [15, 15]
    for rows in (part["rows"] for stage in found for part in stage.values()):
        assert sum(rows[fate] for fate in FATES) == rows["rows"]
    return found


@pytest.mark.parametrize(("join", "pictures"), [(None, 8), ("shared_prefix", 5)])
def test_two_processes_learn_what_one_learns(tmp_path: Path, join: str | None, pictures: int) -> None:
    lab = Lab.make(tmp_path)
    write_rows(tmp_path / "rows.jsonl", lab.rows(15, pictures=pictures))
    (tmp_path / "images" / "teal.png").write_bytes(b"broken")
    one = lab.run("one", stages(lab, join))
    steps = finish(one)
    assert (sum(step.spared for step in steps) > 0) == bool(join)
    two = lab.write(lab.config("two", stages(lab, join)))
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
    # A tree that is divided between processes is read by both where it begins.
    read = [
        [line["tokens"] + line["spared"] for line in lines(run / "log.jsonl") if "tokens" in line]
        for run in (one.folder, folder)
    ]
    assert read[0] == read[1]
    counts = ("order", "targets") if join else ("order", "targets", "tokens")
    for file, keys in [("log.jsonl", counts), ("ledger.jsonl", ("row", "fate", "step"))]:
        found = [
            sorted(str([line.get(key) for key in keys]) for line in lines(run / file)) for run in (one.folder, folder)
        ]
        assert found[0] == found[1]
    assert by_tag(folder) == [pytest.approx(values, rel=1e-6) for values in by_tag(one.folder)]
    assert outcomes(folder) == outcomes(one.folder)
    assert any(part["rows"]["failed"] for part in outcomes(folder)[0].values())
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


OTHERWISE = """
import os, sys
from mmsft.data.media_reader import MediaReader
from mmsft.errors import DataError, MmsftError
from mmsft.run import execute, load_run

layout = MediaReader.layout

def on_this_machine(self, medium):
    if "teal" in medium.ref:
        raise DataError("teal.png: this machine can't read it")
    return layout(self, medium)

if os.environ["RANK"] == "1":
    MediaReader.layout = on_this_machine
try:
    for _, step, _ in execute(load_run(sys.argv[1])):
        print(step.number)
except MmsftError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def test_a_row_that_one_process_reads_otherwise_ends_all_before_its_step_is_saved(tmp_path: Path) -> None:
    lab = Lab.make(tmp_path)
    write_rows(tmp_path / "rows.jsonl", [*lab.rows(8), row(11, "images/teal.png")])
    stage = lab.stage(recipe=lab.recipe(budget=0.5), batch="2 examples", duration="9 steps")
    config = lab.write(lab.config("two", [stage], save={"every": "1 step", "keep": 9}, seed=1))
    done = launch("-c", OTHERWISE, config)
    steps = [process.stdout.split() for process in done]
    for process in done:
        assert process.returncode == 1, process.stderr
        step = len(process.stdout.split()) + 1
        assert f"DataError: the rows of step {step}: the processes don't read them alike" in process.stderr
    assert steps[0] == steps[1] != []
    assert [state.step for state in saved(load_run(config).folder)] == [int(step) for step in steps[0]]


ONE_REFUSES = """
import os, sys
from mmsft.model.fusion import MultimodalModel
from mmsft.run import execute, load_run

found = MultimodalModel.find_attention

def find(self):
    found(self)
    self.packs = self.packs and os.environ["RANK"] == "0"

MultimodalModel.find_attention = find
for _, step, assistant in execute(load_run(sys.argv[1])):
    print(step.number, assistant.model.packs)
"""


def test_where_one_process_can_not_pack_none_does(tmp_path: Path) -> None:
    lab = Lab.make(tmp_path)
    config = lab.write(lab.config("two", [lab.stage(batch="4 examples", duration="2 steps")]))
    for process in launch("-c", ONE_REFUSES, config):
        assert process.returncode == 0, process.stderr
        assert process.stdout.split() == ["1", "False", "2", "False"]


@given(st.integers(0, 2**32 - 1), st.integers(2, 2000), st.data())
def test_odds_are_zero_where_all_processes_have_one_number(number: int, count: int, data: st.DataObject) -> None:
    numbers = [number] * count

    def total() -> float:
        processes: list[Any] = [SimpleNamespace(rank=rank, count=count) for rank in range(count)]
        each = [Ranks.odds(process, own) for process, own in zip(processes, numbers, strict=True)]
        return float(np.random.default_rng(0).permutation(np.array(each, np.float64)).sum())

    assert total() == 0
    other = data.draw(st.integers(0, 2**32 - 1).filter(lambda drawn: drawn != number))
    numbers[data.draw(st.integers(0, count - 1))] = other
    assert total() != 0
