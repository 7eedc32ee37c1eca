"""docs/run-folder.md lists what a run really writes, and its commands run."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

import mmsft
from mmsft.data.ledger import Fate
from mmsft.run.stages import deciding
from tests.examples.pages import DOCS, run_page
from tests.makers import Lab, lines, losses, saved, write_rows

TEXT = (DOCS / "run-folder.md").read_text(encoding="utf-8")


def listed(remark: str) -> str:
    """Returns the table or list that stands below a remark."""
    [found] = re.findall(rf"<!-- {remark} -->\n((?:.+\n)+)", TEXT)
    return str(found)


def first_column(table: str) -> set[str]:
    return {name for line in table.splitlines() for name in re.findall(r"`(.+?)`", line.split("|")[1])}


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the config that the page names; of its rows two can't be used."""
    lab = Lab.make(tmp_path, rows=12)
    write_rows(tmp_path / "rows.jsonl", [*lab.rows(11), {"a": 1}])
    long_row = lab.rows(1, first=11)[0]
    long_row["conversations"][1]["value"] = "long " * 100
    write_rows(tmp_path / "test.jsonl", [*lab.rows(3, first=20), long_row])
    held_out = {"path": str(tmp_path / "test.jsonl"), "format": "llava"}
    stage = lab.stage(recipe=lab.recipe(budget=0.5, validation={"file": held_out}), evaluate={"every": "2 steps"})
    config = lab.config("run", [stage], loggers=["tensorboard"]) | {"out": "runs/mine"}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_runs_and_its_lists_are_what_a_run_writes(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = run_page("run-folder.md", monkeypatch)
    run = desk / "runs" / "mine"

    log, ledger = lines(run / "log.jsonl"), lines(run / "ledger.jsonl")
    steps = [line for line in log if "loss" in line]
    evaluations = [line for line in log if "held_out_loss" in line]
    media = [line for line in log if "media" in line]
    outcomes = [line for line in log if "trained" in line]
    lost = lines(run / "quarantine.jsonl")
    for rows, remark in [
        (steps, "step"),
        (evaluations, "evaluation"),
        (outcomes, "rows"),
        (media, "media"),
        (ledger, "ledger"),
        (lost, "quarantine"),
    ]:
        assert {frozenset(line) for line in rows} == {frozenset(first_column(listed(f"fields: {remark}")))}
    assert len(log) == len(steps) + len(evaluations) + len(outcomes) + len(media)
    assert {line["row"] for line in lost} == {line["row"] for line in ledger}
    assert [line["step"] for line in evaluations] == [0, 2, 4]
    assert {line["fate"] for line in ledger} == set(get_args(Fate)) - {"used", "trimmed"} == {"dropped", "failed"}
    assert list(variables["losses"].values()) == [loss for *_, loss in losses(run)]

    assert {file.name for file in run.iterdir() if not file.name.startswith(".")} == set(
        re.findall(r"^  (\S+?)/?  ", TEXT, re.M)
    ) - {"hf"}
    checkpoint = sorted((run / "checkpoints").iterdir())[-1]
    table = TEXT.partition("## checkpoints/")[2].partition("\n- ")[0]
    assert {file.name for file in checkpoint.iterdir()} == first_column(table.partition("|---|---|\n")[2])

    assert [state.step for state in saved(desk / "runs" / "longer")][-1] == 6
    longer = lines(desk / "runs" / "longer" / "log.jsonl")
    assert longer[0]["held_out_loss"] == evaluations[-1]["held_out_loss"]  # it begins with the weights of the first


def leaves(values: Any, name: str = "") -> Iterator[str]:
    """Yields the dotted names of settings; items of a list share theirs."""
    if isinstance(values, dict) and values:
        for key, value in values.items():
            yield from leaves(value, f"{name}.{key}".strip("."))
    elif isinstance(values, list | tuple) and values and isinstance(values[0], dict):
        for item in values:
            yield from leaves(item, name)
    else:
        yield name


def test_the_settings_that_may_change_are_those_that_a_checkpoint_does_not_keep(desk: Path) -> None:
    run = mmsft.load_run("run.yaml")
    free = set(leaves(run.config.model_dump(mode="json"))) - set(leaves(deciding(run)))
    named: list[str] = []
    for name in re.findall(r"`(\S+?)`", listed("list: free")):
        named.append(named[-1].rpartition(".")[0] + name.removeprefix("…") if name.startswith("….") else name)
    assert {next((name for name in named if f"{leaf}.".startswith(f"{name}.")), leaf) for leaf in free} == set(named)
