"""Losses and scores by wording: in steps, evaluations and the score of a run, however wordings are put together."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmsft.objectives import sft
from mmsft.run import Run
from mmsft.run.check import check
from mmsft.run.open import held_out
from mmsft.types import Encoded
from tests.makers import COLOURS, Command, Lab, finish, lines, write_rows

WORDINGS = {
    "ask": "What is {{number}}? ||| {{colour}}",
    "tell": "Tell me of {{number}}! ||| {{colour}}",
    "even": "{% if number % 2 == 0 %}Even {{number}} ||| {{colour}}{% endif %}",
}
ROWS = [{"number": number, "colour": colour} for number, colour in enumerate(COLOURS)]


def run_of(lab: Lab, out: str, use: str, loss_by: str | None = "wording", **stage: Any) -> Run:
    """Trains one step an epoch on all rows in all wordings, and holds the same out."""
    (lab.folder / "wordings.yaml").write_text(
        yaml.safe_dump([{"name": name, "jinja": jinja} for name, jinja in WORDINGS.items()])
    )
    file = write_rows(lab.folder / "colours.jsonl", ROWS)
    source = {"path": str(file), "templates": {"file": str(lab.folder / "wordings.yaml"), "use": use}}
    recipe = {
        "sources": [{**source, "name": "colours"}],
        "validation": {"file": source},
        "template": "chatml",
        "length": 150,
        "budget": 0.5,
        "loss_by": loss_by,
    }
    whole = {"batch": "24 examples", "duration": "2 steps", "evaluate": {"every": "1 step"}}
    changes = {"recipe": recipe, "train": {"decoder.lora": {"lr": 1e-2}}, **whole, **stage}
    return lab.run(out, [lab.stage(**changes)], model=lab.text_model(lora={"r": 2}))


def logged(run: Run, what: str) -> list[dict[str, Any]]:
    """Returns the losses by tag of steps (``loss``) or evaluations (``held_out_loss``)."""
    return [line["loss_by_tag"] for line in lines(run.folder / "log.jsonl") if what in line]


def by_hand(run: Run) -> dict[str, float]:
    """Returns the loss of the untrained model on the rows of each wording, scored by themselves."""
    [stage] = run.config.stages
    mixture, encoding, model = run.mixture(stage.recipe), run.encoding(stage), run.model().eval()
    rows: dict[str, list[Encoded]] = {}
    for pair, row in zip(mixture.train, encoding.rows(mixture, mixture.train), strict=True):
        if isinstance(row, Encoded):
            rows.setdefault(mixture.conversation(pair).tags["wording"], []).append(row)
    found = {}
    for name, some in rows.items():
        losses = [sft(model, batch, 1) for batch in encoding.batches(some, {})]
        found[name] = sum(loss.sum.item() for loss in losses) / sum(loss.count.item() for loss in losses)
    return found


@pytest.mark.parametrize("micro", ["150 tokens", "4000 tokens"])
def test_the_loss_of_each_wording_is_that_of_its_rows_alone(lab: Lab, micro: str) -> None:
    run = run_of(lab, "a", "each", micro_batch=micro)
    expected = by_hand(run)
    assert set(expected) == set(WORDINGS)
    finish(run)
    steps, evaluations = logged(run, "loss"), logged(run, "held_out_loss")
    # fp32 sums in another order
    assert steps[0] == {"colours": pytest.approx(expected, rel=1e-5)}
    assert evaluations[0] == {"validation": pytest.approx(expected, rel=1e-5)}
    assert steps[1] != steps[0] == {"colours": pytest.approx(evaluations[0]["validation"], rel=1e-5)}


@pytest.mark.parametrize("join", [None, "shared_prefix"])
def test_wordings_that_are_branches_of_one_row_are_told_apart(lab: Lab, join: str | None) -> None:
    each, whole = run_of(lab, "each", "each"), run_of(lab, "all", "all", batch="8 examples")
    if join:
        recipe = whole.config.stages[0].recipe.model_dump(mode="json") | {"join": join}
        whole = lab.run(
            "all",
            [
                lab.stage(
                    recipe=recipe,
                    train={"decoder.lora": {"lr": 1e-2}},
                    batch="8 examples",
                    evaluate={"every": "1 step"},
                )
            ],
            model=lab.text_model(lora={"r": 2}),
        )
    finish(each)
    finish(whole)
    # fp32 sums in another order; the rows are the same, in trees.
    assert logged(whole, "loss")[0]["colours"] == pytest.approx(logged(each, "loss")[0]["colours"], rel=1e-5)
    assert logged(whole, "held_out_loss")[0]["validation"] == pytest.approx(
        logged(each, "held_out_loss")[0]["validation"], rel=1e-5
    )


def test_without_the_setting_nothing_is_told_and_the_weights_are_the_same(lab: Lab) -> None:
    quiet, told = run_of(lab, "quiet", "drawn", None), run_of(lab, "told", "drawn")
    losses = [[step.loss for step in finish(run)] for run in (quiet, told)]
    assert losses[0] == losses[1]
    assert all("loss_by_tag" not in line for line in lines(quiet.folder / "log.jsonl"))
    assert sum(len(line["colours"]) for line in logged(told, "loss")) > 0


def test_rows_without_the_tag_are_in_the_loss_and_in_no_group(lab: Lab) -> None:
    rows = lab.rows(8)
    for each in rows[:4]:
        del each["kind"]
    write_rows(lab.folder / "rows.jsonl", rows)
    run = lab.run("a", [lab.stage(recipe=lab.recipe(loss_by="kind"), batch="8 examples", duration="1 step")])
    [step] = finish(run)
    [line] = [line for line in lines(run.folder / "log.jsonl") if "loss" in line]
    groups = {group.value: total for group, total in step.by_group.items()}
    assert set(groups) == {"", *line["loss_by_tag"]["rows"]}
    sums = [sum(column) for column in zip(*groups.values(), strict=True)]
    assert sums == pytest.approx([step.totals.loss_sum, step.totals.loss_count], rel=1e-6)


def test_a_tag_that_no_row_has_is_told_by_check(lab: Lab) -> None:
    run = lab.run("a", [lab.stage(recipe=lab.recipe(loss_by="kid"))])
    assert any("no" in it and "has the tag 'kid' (did you mean 'kind'?)" in it for it in check(run).problems)
    assert check(lab.run("b", [lab.stage(recipe=lab.recipe(loss_by="kind"))])).ok


def test_the_setting_may_change_between_the_parts_of_a_run(lab: Lab) -> None:
    finish(run_of(lab, "a", "each"))
    assert finish(run_of(lab, "a", "each", None)) == []


@pytest.mark.parametrize("use", ["each", "all"])
def test_eval_scores_each_wording_and_tells_how_much_wordings_matter(lab: Lab, mmsft: Command, use: str) -> None:
    run = run_of(lab, "a", use)
    finish(run)
    drawn = held_out(run, "last", 100)
    assert {source for source in drawn.sources} == {"validation"}
    asked = [row.tags["wording"] for row in drawn.rows]
    assert {name: asked.count(name) for name in WORDINGS} == {"ask": 8, "tell": 8, "even": 4}
    found = json.loads(mmsft("eval", run.folder, "--max-new-tokens", 2, "--json").out)
    assert set(found["by_wording"]["validation"]) == set(WORDINGS)
    assert found["sensitivity"] is None  # a random model is never right
    assert "validation in 3 wordings: 0.0% on average" in mmsft("eval", run.folder, "--max-new-tokens", 2).out


def test_tags_of_turns_go_with_rows_into_shards(lab: Lab, tmp_path: Path, mmsft: Command) -> None:
    run_of(lab, "a", "all")
    assert mmsft("data", "build", lab.folder / "a.yaml", "--out", tmp_path / "shards").code == 0
    shards = {"path": str(tmp_path / "shards" / "train-*.tar"), "name": "colours"}
    again = run_of(lab, "b", "all").config.stages[0].recipe.model_dump(mode="json")
    stage = lab.stage(recipe=again | {"sources": [shards]}, train={"decoder.lora": {"lr": 1e-2}}, batch="8 examples")
    run = lab.run("b", [stage], model=lab.text_model(lora={"r": 2}))
    finish(run)
    assert set(logged(run, "loss")[0]["colours"]) == set(WORDINGS)
