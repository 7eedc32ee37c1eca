"""Rows that one run lost, later runs know: they count with their old reason, and aren't read unless they changed."""

import json
from pathlib import Path
from typing import Any

import pytest

from mmsft.data.source import Source
from mmsft.errors import ConfigError, DataError
from mmsft.run import Run, execute, load_run
from mmsft.run.audit import audit
from mmsft.run.check import check
from mmsft.run.summary import summary
from mmsft.types import Conversation
from tests.makers import Command, Lab, finish, lines, row, saved, weights, write_rows

LOST = {"rows.jsonl:13": "dropped", "rows.jsonl:14": "failed", "rows.jsonl:15": "failed"}
"""Too long, no picture, and not JSON."""


@pytest.fixture
def folder(lab: Lab) -> Path:
    long = row(12)
    long["conversations"][0]["value"] += "?" * 300
    file = write_rows(lab.folder / "rows.jsonl", [*lab.rows(12), long, row(13, "images/broken.png")])
    file.write_bytes(file.read_bytes() + b'{"conversations": [\n')
    (lab.folder / "images" / "broken.png").write_bytes(b"broken")
    return lab.folder


def run_of(lab: Lab, out: str, quarantine: Path | None = None, budget: float = 0.3, **changes: Any) -> Run:
    settings = {} if quarantine is None else {"quarantine": str(quarantine)}
    recipe = lab.recipe(budget=budget, **settings, **changes)
    return lab.run(out, [lab.stage(recipe=recipe, duration="2 epochs", batch="5 examples")])


def ledger_of(run: Run) -> list[tuple[str, str, str, bool]]:
    found = lines(run.folder / "ledger.jsonl")
    return sorted((line["row"], line["fate"], line["reason"], line["known"]) for line in found)


def known(run: Run) -> set[str]:
    return {entry.row for entry in run.encoding(run.config.stages[0]).known.values()}


def test_a_second_run_counts_them_with_their_reasons_and_reads_none(
    lab: Lab, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_of(lab, "a")
    finish(first)
    file = first.folder / "quarantine.jsonl"
    assert {line["row"]: line["fate"] for line in lines(file)} == LOST
    assert len(lines(file)) == 3  # once, though there were two epochs

    second = run_of(lab, "b", file, budget=0.0)
    assert known(second) == set(LOST)
    read: list[int] = []
    conversation = Source.conversation

    def noting(self: Source, at: int) -> Conversation:
        read.append(at)
        return conversation(self, at)

    monkeypatch.setattr(Source, "conversation", noting)
    finish(second)
    assert read
    assert not {12, 13, 14} & set(read)
    assert [entry[:3] for entry in ledger_of(second)] == [entry[:3] for entry in ledger_of(first)]
    assert {entry[3] for entry in ledger_of(second)} == {True} != {entry[3] for entry in ledger_of(first)}
    assert weights(second.folder) == weights(first.folder)
    fates = {"used": 24, "dropped": 2, "failed": 4}
    assert saved(first.folder)[-1].ledger == {"rows": fates}
    assert saved(second.folder)[-1].ledger == {"rows": {**fates, "known": 6}}
    assert "2 dropped, 4 failed, 6 of them in quarantine, of 30 rows" in summary(second)
    # A third one may name the second's file in place of the first's.
    assert known(run_of(lab, "c", second.folder / "quarantine.jsonl")) == set(LOST)


def test_a_run_that_was_stopped_by_its_budget_leaves_what_lets_the_next_one_through(lab: Lab, folder: Path) -> None:
    first = run_of(lab, "a", budget=0.1)
    with pytest.raises(DataError, match="rows seen are lost"):
        finish(first)
    found = {line["row"] for line in lines(first.folder / "quarantine.jsonl")}
    assert 1 < len(found) <= 3
    second = run_of(lab, "b", first.folder / "quarantine.jsonl", budget=0.1)
    finish(second)
    assert {line["row"] for line in lines(second.folder / "quarantine.jsonl")} == set(LOST)


@pytest.mark.parametrize("what", ["the row", "its picture", "its picture is gone", "the rows before it"])
def test_what_has_changed_is_read_again(lab: Lab, folder: Path, what: str) -> None:
    finish(run_of(lab, "a"))
    rows = (folder / "rows.jsonl").read_bytes().splitlines(keepends=True)
    match what:
        case "the row":
            rows[12] = json.dumps(row(12)).encode() + b"\n"
            gone = {"rows.jsonl:13"}
        case "its picture":
            (folder / "images" / "broken.png").write_bytes((folder / "images" / "red.png").read_bytes())
            gone = {"rows.jsonl:14"}
        case "its picture is gone":
            (folder / "images" / "broken.png").unlink()
            gone = {"rows.jsonl:14"}
        case _:
            rows = rows[1:]
            gone = set(LOST)
    (folder / "rows.jsonl").write_bytes(b"".join(rows))
    assert known(run_of(lab, "b", folder / "a" / "quarantine.jsonl")) == set(LOST) - gone


@pytest.mark.parametrize("changes", [{"length": 400}, {"template": "vicuna"}, {"too_long": "trim"}])
def test_rows_that_are_read_otherwise_are_read_again(lab: Lab, folder: Path, changes: dict[str, Any]) -> None:
    finish(run_of(lab, "a"))
    file = folder / "a" / "quarantine.jsonl"
    recipe = lab.recipe(budget=0.3, quarantine=str(file)) | changes
    run = lab.run("b", [lab.stage(recipe=recipe, micro_batch="400 tokens")])
    assert known(run) == set()
    assert known(run_of(lab, "c", file, learn="completion")) == set()
    assert known(run_of(lab, "d", file, loss_by="kind")) == set(LOST)


def test_another_tower_reads_otherwise(lab: Lab, folder: Path) -> None:
    finish(run_of(lab, "a"))
    config = lab.config("b", [lab.stage(recipe=lab.recipe(quarantine=str(folder / "a" / "quarantine.jsonl")))])
    config["model"]["towers"]["image"]["modality"]["aspect"] = "crop"
    assert known(load_run(lab.write(config))) == set()


def test_data_check_writes_one_that_a_run_honours(lab: Lab, folder: Path, mmsft: Command) -> None:
    run = run_of(lab, "a")
    file = folder / "lost.jsonl"
    said = mmsft("data", "check", folder / "a.yaml", "--quarantine", file)
    assert said.code == 0
    assert {line["row"]: line["fate"] for line in lines(file)} == LOST
    assert known(run_of(lab, "b", file)) == set(LOST)
    again = audit(run_of(lab, "b", file, budget=0.0))
    assert again.ok
    assert "1 dropped, 2 failed, 3 of them in quarantine, of 15 rows" in again.text()
    assert not audit(run_of(lab, "b", budget=0.0)).ok
    refused = mmsft("data", "check", folder / "a.yaml", "--quarantine", folder / "nowhere" / "lost.jsonl")
    assert refused.code == 2
    assert "lost.jsonl: can't be written: No such file" in refused.err
    assert run.config.stages[0].recipe.quarantine is None


def test_check_says_how_many_it_knows_and_its_budget_does_not_count_them(lab: Lab, folder: Path) -> None:
    finish(run_of(lab, "a"))
    report = check(run_of(lab, "b", folder / "a" / "quarantine.jsonl", budget=0.0))
    assert report.ok
    assert any("quarantine: 3 rows that it names are as they were" in fact for fact in report.facts)


def test_held_out_rows_are_known_too(lab: Lab, folder: Path) -> None:
    def held(out: str, **more: Any) -> Run:
        recipe = lab.recipe("good.jsonl", budget=0.3, **more)
        recipe["validation"] = {"file": {"path": str(folder / "rows.jsonl"), "format": "llava"}}
        return lab.run(out, [lab.stage(recipe=recipe, evaluate={"every": "2 steps"})])

    write_rows(folder / "good.jsonl", lab.rows(8))
    finish(held("a"))
    second = held("b", quarantine=str(folder / "a" / "quarantine.jsonl"))
    finish(second)
    assert {line["row"] for line in lines(second.folder / "ledger.jsonl")} == set(LOST)
    assert all(line["known"] and line["held_out"] for line in lines(second.folder / "ledger.jsonl"))
    [found] = [line for line in lines(second.folder / "log.jsonl") if "trained" in line]
    counts = found["held_out"]["sources"]["validation"]
    assert (counts["rows"], counts["known"], counts["used"]) == (15, 3, 12)
    assert found["trained"]["sources"]["rows"]["rows"] == 16


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"quarantine: .*lost\.jsonl: no such file.*mmsft data check --quarantine FILE"),
        ("{", r"lost\.jsonl:1: not valid JSON"),
        ('{"row": "rows.jsonl:1"}', r"lost\.jsonl:1: isn't a line of a quarantine \(source, index"),
        (
            '\n{"source": "a", "index": 1, "row": "a:1", "fate": "gone", "reason": "", "mark": ""}',
            r"lost\.jsonl:2: isn't a line of a quarantine \(fate\)",
        ),
    ],
)
def test_a_file_that_is_none_is_refused_before_training(lab: Lab, folder: Path, text: str | None, message: str) -> None:
    file = folder / "lost.jsonl"
    if text is not None:
        file.write_text(text)
    run = run_of(lab, "a", file)
    assert any(problem for problem in check(run).problems if "quarantine" in problem)
    with pytest.raises((ConfigError, DataError), match=message):
        finish(run)


def test_rows_of_other_sources_and_places_are_passed_over(lab: Lab, folder: Path) -> None:
    finish(run_of(lab, "a"))
    file = folder / "a" / "quarantine.jsonl"
    first, *rest = lines(file)
    write_rows(file, [{**first, "source": "gone"}, {**first, "index": 999}, {**first, "index": -1}, *rest])
    assert known(run_of(lab, "b", file)) == set(LOST) - {first["row"]}


def test_a_run_that_goes_on_keeps_one_line_a_row(lab: Lab, folder: Path) -> None:
    calm = run_of(lab, "calm")
    finish(calm)
    stopped = execute(run_of(lab, "a"))
    for _ in range(4):
        next(stopped)
    stopped.close()
    finish(run_of(lab, "a"))
    drop = ("stage", "step")
    found = [
        sorted(
            json.dumps({name: value for name, value in line.items() if name not in drop}, sort_keys=True)
            for line in lines(folder / out / "quarantine.jsonl")
        )
        for out in ("calm", "a")
    ]
    assert found[0] == found[1]
    assert saved(folder / "a")[-1].ledger == saved(folder / "calm")[-1].ledger
