from pathlib import Path

import pytest
import torch

from mmsft.assistant import ask
from mmsft.errors import CheckpointError, ConfigError, DataError
from mmsft.eval.accuracy import accuracy
from mmsft.eval.loss import held_out_loss
from mmsft.run import execute, open_run
from mmsft.run.open import find_checkpoint, held_out
from mmsft.types import Media
from tests.makers import Lab, finish, lines, write_rows


def test_a_trained_model_looks_and_a_blind_one_does_not(lab: Lab) -> None:
    recipe = lab.recipe(validation={"fraction": 0.3})
    train = {"decoder": {"lr": 1e-3}, "decoder.lora": {"lr": 1e-3}, "towers": {"lr": 1e-2}}
    run = lab.run("a", [lab.stage(recipe=recipe, train=train)])
    finish(run)
    assistant = open_run(run.folder)
    red, blue = (ask("What?", (Media("image", str(lab.folder / "images" / f"{c}.png")),)) for c in ("red", "blue"))
    assert assistant.blind().answers([red], max_new_tokens=6) == assistant.blind().answers([blue], max_new_tokens=6)
    with torch.no_grad():
        seen = [assistant.model.embed(assistant._batch([assistant.encoder.prompt(one)])) for one in (red, blue)]
    assert not torch.equal(seen[0], seen[1])
    rows = held_out(run, "last", 5).rows
    score = accuracy(assistant, rows, 4)
    assert len(score.answers) == len(rows) == 5
    assert set(score.by_tag) == {"kind"}


def test_held_out_rows_are_the_runs_and_show_different_pictures(lab: Lab) -> None:
    run = lab.run("a", [lab.stage(recipe=lab.recipe(validation={"fraction": 0.5}))])
    finish(run)
    mixture = run.mixture(run.config.stages[0].recipe)
    rows = held_out(run, "last", 100).rows
    assert {row.id for row in rows} == {mixture.row_id(pair) for pair in mixture.held_out}
    assert [row.id for row in rows] == [row.id for row in held_out(run, "last", 100).rows]
    pictures = [turn.media for row in rows for turn in row.turns[:1] if turn.media]
    assert len(set(pictures[: len(set(pictures))])) == len(set(pictures))


def test_without_a_validation_there_is_nothing_to_score(lab: Lab) -> None:
    run = lab.run("a")
    finish(run)
    with pytest.raises(ConfigError, match="stage align: its recipe holds no rows out"):
        held_out(run, "last", 5)


def test_checkpoints_are_found_by_name(lab: Lab) -> None:
    run = lab.run("a", save={"every": "1 step", "keep": 3})
    with pytest.raises(CheckpointError, match="no complete checkpoint; train first"):
        find_checkpoint(run, "last")
    finish(run)
    assert find_checkpoint(run, "last").state.step == 4
    assert find_checkpoint(run, "00-align-0000003").state.step == 3
    with pytest.raises(CheckpointError, match="did you mean '00-align-0000003'"):
        find_checkpoint(run, "00-align-000003")
    with pytest.raises(CheckpointError, match="measured no held-out loss"):
        find_checkpoint(run, "best")


def test_the_held_out_loss_does_not_depend_on_the_split(lab: Lab) -> None:
    recipe = lab.recipe(validation={"fraction": 0.4}, length=50)
    measured = []
    for name, micro in (("small", "50 tokens"), ("large", "5000 tokens")):
        stage = lab.stage(recipe=recipe, micro_batch=micro, evaluate={"every": "2 steps"})
        run = lab.run(name, [stage])
        next(execute(run))
        measured.append(lines(run.folder / "log.jsonl")[0]["held_out_loss"])
    assert measured[0] == pytest.approx(measured[1], rel=1e-6)  # fp32 sums in another order


def test_no_rows_have_no_loss(lab: Lab) -> None:
    assistant = next(execute(lab.run("a")))[2]
    assert torch.isnan(torch.tensor(held_out_loss(assistant.model, [], assistant.ranks, 1).loss))


def test_a_medium_that_is_not_there_is_named(lab: Lab) -> None:
    assistant = next(execute(lab.run("a")))[2]
    with pytest.raises(DataError, match=r"gone\.png>: no such file"):
        assistant.answers([ask("What?", (Media("image", str(lab.folder / "gone.png")),))])


def test_a_held_out_row_that_cannot_be_asked_is_lost_and_said(lab: Lab) -> None:
    run = lab.run("a", [lab.stage(recipe=lab.recipe(validation={"fraction": 0.5}))])
    finish(run)
    whole = held_out(run, "last", 100)
    gone = next(medium for row in whole.rows for turn in row.turns for medium in turn.media)
    Path(str(gone.ref)).unlink()
    left = held_out(run, "last", 100)
    theirs = {row.id for row in whole.rows if any(gone in turn.media for turn in row.turns)}
    assert {row.id for row in left.rows} == {row.id for row in whole.rows} - theirs
    assert (whole.lost, len(left.lost)) == ((), len(theirs))
    assert all(Path(str(gone.ref)).name in reason for reason in left.lost)


def test_of_a_row_with_branches_each_learned_answer_is_asked_and_no_rejected_one(lab: Lab) -> None:
    chosen, rejected = ([{"role": "assistant", "content": said}] for said in ("red", "blue"))
    ask = [{"role": "user", "content": "Which?"}]
    pair = {"chosen": ask + chosen, "rejected": ask + rejected}
    write_rows(lab.folder / "pairs.jsonl", [pair] * 3)
    instances = [{"input": str(number), "output": f"it is {number}"} for number in range(2)]
    write_rows(lab.folder / "many.jsonl", [{"instruction": "Say it.", "instances": instances}])
    recipe = lab.recipe(validation={"source": "pairs"})
    for name, format in (("pairs", "preference"), ("many", "self_instruct")):
        recipe["sources"].append({"path": str(lab.folder / f"{name}.jsonl"), "format": format, "name": name})
    run = lab.run("a", [lab.stage(recipe=recipe)])
    finish(run)
    drawn = held_out(run, "last", 9)
    assert [row.turns[-1].text for row in drawn.rows] == ["red"] * 3
    assert (drawn.sources, drawn.lost) == (("pairs",) * 3, ())
    recipe["validation"] = {"source": "many"}
    run = lab.run("b", [lab.stage(recipe=recipe)])
    finish(run)
    assert [row.turns[-1].text for row in held_out(run, "last", 9).rows] == ["it is 0", "it is 1"]
