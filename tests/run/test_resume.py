"""What may change between the parts of a run, and where its parts lie when it goes on."""

from typing import Any

import pytest

from mmsft.errors import CheckpointError, DataError
from mmsft.model.fusion import MultimodalModel
from mmsft.run import Run, execute
from mmsft.train import checkpoint as ckpt
from tests.makers import Lab, finish, losses, saved, weights, write_rows


def test_a_raised_budget_lets_a_stopped_run_go_on(lab: Lab) -> None:
    write_rows(lab.folder / "rows.jsonl", [*lab.rows(10), {"a": 1}, {"b": 2}])

    def run(out: str, budget: float) -> Run:
        stage = lab.stage(recipe=lab.recipe(budget=budget), duration="2 epochs")
        return lab.run(out, [stage], save={"every": "1 step"}, seed=2)

    with pytest.raises(DataError, match="raise the recipe's `budget`"):
        finish(run("a", 0.1))
    stopped = saved(lab.folder / "a")[-1].step
    assert 0 < stopped < 6
    assert len(finish(run("a", 0.5))) == 6 - stopped
    finish(run("calm", 0.5))
    assert weights(lab.folder / "a") == weights(lab.folder / "calm")
    assert saved(lab.folder / "a")[-1].ledger == saved(lab.folder / "calm")[-1].ledger


def test_a_source_of_which_rows_are_gone_is_refused_by_a_run_that_goes_on(lab: Lab) -> None:
    stage = lab.stage(duration="2 epochs")
    stopped = execute(lab.run("a", [stage], save={"every": "1 step"}))
    for _ in range(7):  # in the second epoch
        next(stopped)
    stopped.close()
    write_rows(lab.folder / "rows.jsonl", lab.rows(23))
    with pytest.raises(CheckpointError, match="source 'rows' has 23 rows, and had 24 when the stage began"):
        finish(lab.run("a", [stage]))
    write_rows(lab.folder / "rows.jsonl", [*lab.rows(23), lab.rows(1, first=40)[0]])
    assert len(finish(lab.run("a", [stage]))) == 12 - 7


def test_what_decides_no_weight_may_change_between_the_parts_of_a_run(lab: Lab) -> None:
    next(run_in_parts := execute(lab.run("a", save={"every": "1 step"})))
    next(run_in_parts)  # the first step's checkpoint is written by now
    run_in_parts.close()
    recipe = lab.recipe()
    recipe["sources"][0] |= {"licence": "CC0", "tags": [], "media_root": str(lab.folder)}
    changed = lab.stage(recipe=recipe, micro_batch="160 tokens", activation_checkpointing="selective")
    assert [step.number for step in finish(lab.run("a", [changed], workers=1))] == [3, 4]


def test_a_resumed_optimiser_lies_where_the_model_computes(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    first = execute(lab.run("a", save={"every": "1 step"}))
    next(first)
    next(first)
    first.close()
    told = []

    def tell(place: Any, name: str) -> None:
        original = getattr(place, name)

        def spy(*args: Any) -> Any:
            told.append(name)
            return original(*args)

        monkeypatch.setattr(place, name, spy)

    for place, name in [(MultimodalModel, "to"), (ckpt, "restore_weights"), (ckpt, "restore_optimizer")]:
        tell(place, name)
    finish(lab.run("a"))
    assert [name for i, name in enumerate(told) if name not in told[:i]] == [
        "to",
        "restore_weights",
        "restore_optimizer",
    ]


@pytest.mark.parametrize("join", [None, "shared_prefix"])
def test_a_stopped_run_goes_on_to_the_same_bits_with_other_workers(lab: Lab, join: str | None) -> None:
    write_rows(lab.folder / "rows.jsonl", lab.rows(24, pictures=3))
    stage = lab.stage(recipe=lab.recipe(join=join), duration="2 epochs", batch="5 examples")

    def run(out: str, workers: int) -> Run:
        return lab.run(out, [stage], save={"every": "1 step"}, workers=workers)

    calm = finish(run("calm", 0))
    assert not join or sum(step.spared for step in calm) > 100
    stopped = execute(run("stopped", 2))
    for _ in range(4):  # in the middle of an epoch, and of rows that begin alike
        next(stopped)
    stopped.close()
    assert len(finish(run("stopped", 1))) == len(calm) - 4
    assert weights(lab.folder / "stopped") == weights(lab.folder / "calm")
    assert losses(lab.folder / "stopped") == losses(lab.folder / "calm")
