import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mmsft import cli
from mmsft.errors import ConfigError, Diverged
from mmsft.run import execute
from mmsft.run.profile import PHASES, Profile
from mmsft.train import loop
from tests.makers import Lab, finish, losses


def profiled(lab: Lab, out: str = "a", **changes: Any) -> Path:
    run = lab.run(out, [lab.stage(**{"duration": "6 steps", **changes})])
    assert len(list(execute(run, profile=True))) == 6
    return run.folder / "profile" / "align"


def test_each_phase_is_timed_and_together_they_are_the_steps(lab: Lab) -> None:
    began = time.perf_counter()
    folder = profiled(lab)
    elapsed = time.perf_counter() - began
    told = json.loads((folder / "profile.json").read_text())
    assert told["steps"] == 6
    assert tuple(told["seconds"]) == PHASES
    assert all(seconds > 0 for seconds in told["seconds"].values())
    assert 6 * sum(told["seconds"].values()) < elapsed * 1.5  # the mean leaves the first, slow step out
    text = (folder / "profile.txt").read_text()
    assert all(phase in text for phase in PHASES)


def test_the_profiles_own_work_is_in_no_phase(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Profile.write

    def slowly(self: Profile) -> None:
        time.sleep(0.5)
        write(self)

    monkeypatch.setattr(Profile, "write", slowly)
    told = json.loads((profiled(lab) / "profile.json").read_text())
    assert told["seconds"]["between steps"] < 0.4


def test_memory_is_told_by_part(lab: Lab) -> None:
    told = json.loads((profiled(lab) / "profile.json").read_text())["memory"]
    learning = 416 * 4  # of the adapter, as `mmsft check` counts them
    assert told["gradients"] == learning
    assert told["optimiser"] == 2 * learning + 4 * 4  # and the number of steps of each of four
    assert told["weights"] > told["optimiser"]
    assert told["peak of the process, with its libraries"] > 2**26


def test_operators_and_a_trace_with_the_phases_are_written(lab: Lab) -> None:
    folder = profiled(lab)
    assert "aten::" in (folder / "operators.txt").read_text()
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    names = [event.get("name") for event in events]
    assert names.count("phase: decoder") == 3
    assert {f"phase: {phase}" for phase in PHASES} <= set(names)


def test_the_losses_of_a_profiled_run_are_those_of_another(lab: Lab) -> None:
    profiled(lab, "a")
    finish(lab.run("b", [lab.stage(duration="6 steps")]))
    assert losses(lab.folder / "a") == losses(lab.folder / "b")


def test_without_the_flag_nothing_is_measured(lab: Lab) -> None:
    run = lab.run("a")
    finish(run)
    assert not (run.folder / "profile").exists()


def test_a_run_that_fails_leaves_what_was_measured_until_then(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    check = loop.check

    def failing(step: loop.Step) -> None:
        if step.number == 4:
            raise Diverged("as if")
        check(step)

    monkeypatch.setattr(loop, "check", failing)
    with pytest.raises(Diverged):
        profiled(lab)
    folder = lab.folder / "a" / "profile" / "align"
    assert json.loads((folder / "profile.json").read_text())["steps"] == 3
    assert "aten::" in (folder / "operators.txt").read_text()
    assert json.loads((folder / "trace.json").read_text())["traceEvents"]


def test_a_run_that_is_killed_leaves_the_tables_of_the_steps_before(lab: Lab) -> None:
    config = lab.write(lab.config("a", [lab.stage(duration="100000 steps")], save={"every": "100000 steps"}))
    command = [sys.executable, "-m", "mmsft", "train", str(config), "--profile"]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    table = lab.folder / "a" / "profile" / "align" / "profile.txt"
    try:
        until = time.monotonic() + 120
        while not table.exists() and time.monotonic() < until:
            assert process.poll() is None
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert "decoder" in table.read_text()


def test_a_folder_that_cannot_be_written_is_told(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    run = lab.run("a")
    run.folder.mkdir()
    (run.folder / "profile").write_text("in the way")
    with pytest.raises(ConfigError, match=r"the run folder .*profile.* can't be written"):
        list(execute(run, profile=True))


def test_the_command_has_the_flag(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    config = lab.write(lab.config("a"))
    monkeypatch.setattr(sys, "argv", ["mmsft", "train", str(config), "--profile"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    assert (lab.folder / "a" / "profile" / "align" / "profile.txt").exists()
