"""What became of rows at a stage's end: used + trimmed + dropped + failed = rows, whatever happened on the way."""

import json
from pathlib import Path
from typing import Any

import pytest

from mmsft.data.ledger import FATES
from mmsft.run import Run, execute
from mmsft.run.audit import audit
from mmsft.run.outcome import Outcome, Rows
from mmsft.run.summary import summary
from tests.makers import Command, Lab, finish, lines, row, write_rows


def odd_rows(lab: Lab) -> list[dict[str, Any]]:
    """Six good ones; one to trim, two to drop, three that fail for two reasons."""
    talk = [{"from": who, "value": f"{who} {number}"} for number in range(9) for who in ("human", "gpt")]
    long = [{"conversations": [{"from": "human", "value": "x" * 300}, {"from": "gpt", "value": "y"}]}] * 2
    gone = [row(number, f"images/none-{number}.png") for number in range(2)]
    return [*lab.rows(6), {"conversations": talk}, *long, *gone, {"a": 1}]


EXPECTED = {"used": 6, "trimmed": 1, "dropped": 2, "failed": 3, "rows": 12, "known": 0}


def stage_of(lab: Lab, name: str = "align", **changes: Any) -> dict[str, Any]:
    write_rows(lab.folder / "odd.jsonl", odd_rows(lab))
    recipe = lab.recipe(too_long="trim", budget=0.9, validation={"file": {"path": str(lab.folder / "odd.jsonl")}})
    recipe["sources"].append({"path": str(lab.folder / "odd.jsonl"), "format": "llava", "name": "odd"})
    recipe["validation"]["file"]["format"] = "llava"
    return lab.stage(
        name,
        **{
            "recipe": recipe,
            "duration": "3 epochs",
            "batch": "5 examples",
            "evaluate": {"every": "4 steps"},
            **changes,
        },
    )


def outcome_of(run: Run) -> dict[str, Any]:
    """Returns the one line of the log that says what became of the rows."""
    [line] = [line for line in lines(run.folder / "log.jsonl") if "trained" in line]
    return {part: line[part] for part in ("trained", "held_out")}


def test_fates_add_up_by_source_over_epochs_and_held_out_rows_are_apart(lab: Lab) -> None:
    run = lab.run("a", [stage_of(lab)])
    finish(run)
    found = outcome_of(run)
    times_three = {name: 3 * count for name, count in EXPECTED.items()}
    whole = {"used": 72, "trimmed": 0, "dropped": 0, "failed": 0, "rows": 72, "known": 0}
    assert found["trained"]["sources"] == {"rows": whole, "odd": times_three}
    assert found["held_out"]["sources"] == {"validation": EXPECTED}
    reasons = [(it["source"], it["fate"], it["rows"]) for it in found["trained"]["reasons"]]
    assert sorted(reasons) == [
        ("odd", "dropped", 2), ("odd", "failed", 1), ("odd", "failed", 2), ("odd", "trimmed", 1),
    ]  # fmt: skip
    assert [reason[2] for reason in reasons] == [2, 2, 1, 1]


def test_data_check_says_of_each_row_once_what_training_said(lab: Lab) -> None:
    run = lab.run("a", [stage_of(lab, duration="1 epoch")])
    [checked] = audit(run).stages
    finish(run)
    trained, asked = outcome_of(run), json.loads(json.dumps(checked.outcome.as_dict()))
    for part in ("trained", "held_out"):
        assert trained[part]["sources"] == asked[part]["sources"]
        assert sorted(map(json.dumps, trained[part]["reasons"])) == sorted(map(json.dumps, asked[part]["reasons"]))
    assert set(checked.outcome.lines()) <= set(summary(run).splitlines())


@pytest.mark.parametrize("after", [1, 5, 20])
def test_a_stage_that_goes_on_tells_what_one_does_that_was_never_stopped(lab: Lab, after: int) -> None:
    calm = lab.run("calm", [stage_of(lab)])
    finish(calm)

    def run() -> Run:
        return lab.run("a", [stage_of(lab)], save={"every": "1 step"}, workers=1)

    stopped = execute(run())
    for _ in range(after):
        next(stopped)
    stopped.close()
    finish(run())
    assert outcome_of(run()) == outcome_of(calm)


def test_each_stage_is_told_when_it_is_over(lab: Lab, mmsft: Command) -> None:
    two = {"duration": "2 steps", "evaluate": None}
    config = lab.write(lab.config("a", [stage_of(lab), stage_of(lab, "two", **two)]))
    out = mmsft("train", config).out
    odd = "  odd: 18 used, 3 trimmed, 6 dropped, 9 failed, of 36 rows"
    assert out.index("stage two") < out.index("align: 22 steps") < out.index(odd) < out.index("two: 2 steps; loss")
    assert "    failed, 2 rows, the first: odd.jsonl:10" in out
    assert "  validation, held out: 6 used, 1 trimmed, 2 dropped, 3 failed, of 12 rows" in out
    assert out.count("align: 22 steps") == 1
    again = mmsft("train", config).out
    assert again.index(odd) < again.index("two: 2 steps; loss") < again.index("already complete")


def test_a_stage_that_patience_ends_tells_the_rows_until_then(lab: Lab) -> None:
    evaluate = {"every": "1 step", "patience": 2}
    run = lab.run("a", [stage_of(lab, train={"towers.image.adapter": {"lr": 1e-30}}, evaluate=evaluate)])
    steps = finish(run)
    sources = outcome_of(run)["trained"]["sources"]
    assert sum(source["rows"] for source in sources.values()) == sum(len(step.data.rows) for step in steps) == 15
    assert all(sum(source[fate] for fate in FATES) == source["rows"] for source in sources.values())


def test_an_outcome_is_read_as_it_was_written(tmp_path: Path) -> None:
    rows = Rows({"a": {"used": 3, "failed": 1, "known": 1}, "none": {}}, [])
    written = json.loads(json.dumps(Outcome(rows, rows).as_dict()))
    again = Outcome.read(written)
    assert again.as_dict() == written
    assert (rows.total, rows.lost, again.trained.lost) == (4, 0, 0)
    assert list(again.lines()) == [
        "  a: 3 used, 0 trimmed, 0 dropped, 1 failed, 1 of them in quarantine, of 4 rows",
        "  a, held out: 3 used, 0 trimmed, 0 dropped, 1 failed, 1 of them in quarantine, of 4 rows",
    ]
