from typing import Any

import pytest

from mmsft.errors import CheckpointError, ConfigError, MmsftError
from mmsft.model.names import named_parameters
from mmsft.run import Run, execute, load_run
from mmsft.run.load import newest
from tests.makers import COLOURS, Lab, finish, row, saved, write_rows


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Run, "model", lambda self, **_: pytest.fail("the model was built"))


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sources": [{"path": "nowhere.jsonl", "format": "llava"}]}, "nowhere.jsonl: no such file"),
        ({"template": "chatmll"}, "did you mean 'chatml'"),
        ({"validation": {"file": {"path": "held.jsonl", "format": "llava"}}}, "held.jsonl: no such file"),
    ],
)
def test_training_looks_at_the_data_of_all_stages_before_it_builds_the_model(
    lab: Lab, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(MmsftError, match=message):
        finish(lab.run("a", [lab.stage(), lab.stage("two", recipe=lab.recipe(**change))]))


@pytest.mark.usefixtures("no_model")
def test_training_looks_for_the_start_of_a_later_stage_before_it_builds_the_model(lab: Lab) -> None:
    with pytest.raises(ConfigError, match=r"stage two: init_from: .* has no complete checkpoint"):
        finish(lab.run("a", [lab.stage(), lab.stage("two", init_from=str(lab.folder))]))


def test_a_later_stage_whose_start_does_not_fit_fails_before_the_first_step(lab: Lab) -> None:
    train = {"decoder.lora": {"lr": 1e-2}}
    first = lab.run("first", [lab.stage(train=train, duration="1 step")], model=lab.model(lora={"r": 3}))
    finish(first)
    run = lab.run("a", [lab.stage(), lab.stage("two", init_from=str(first.folder))])
    with pytest.raises(CheckpointError, match="these weights are of another model"):
        finish(run)
    assert newest(run.folder) is None


def test_a_stage_that_is_over_needs_its_data_and_its_start_no_more(lab: Lab) -> None:
    first = lab.run("first", [lab.stage(duration="1 step")])
    finish(first)
    write_rows(lab.folder / "others.jsonl", lab.rows(8))
    begin = lab.stage(init_from=str(first.folder), recipe=lab.recipe("others.jsonl"), duration="1 step")
    config = lab.write(lab.config("a", [begin, lab.stage("two", duration="2 steps")]))
    stopped = load_run(config)
    stopped_early(stopped)
    (lab.folder / "others.jsonl").unlink()
    (first.folder / "checkpoints").rename(lab.folder / "gone")
    finish(load_run(config))
    assert [(state.name, state.step) for state in saved(stopped.folder)][-1] == ("two", 2)


def stopped_early(run: Run) -> None:
    """Trains into the second stage, up to its first checkpoint, and no further."""
    for stage, step, _ in execute(run):
        if (stage.name, step.number) == ("two", 1):
            break


@pytest.mark.parametrize(
    "decoder", [{}, {"lora": {"r": 2, "dora": True}}, {"new_tokens": ["<a>"], "dtype": "bfloat16"}]
)
def test_an_empty_model_has_the_parameters_of_the_full_one_and_no_weights(lab: Lab, decoder: dict[str, Any]) -> None:
    run = lab.run("a", model=lab.model(**decoder))
    full, empty = named_parameters(run.model()), named_parameters(run.model(empty=True))
    assert [(name, p.shape, p.dtype) for name, p in full.items()] == [(n, p.shape, p.dtype) for n, p in empty.items()]
    assert all(parameter.is_meta for name, parameter in empty.items() if name.startswith("decoder."))


def test_describe_counts_the_rows_that_are_used(lab: Lab) -> None:
    more = str(write_rows(lab.folder / "more.jsonl", lab.rows(5, first=100)))
    recipe = lab.recipe(validation={"source": "more.jsonl"})
    recipe["sources"][0] |= {"where": {"kind": ["short"]}, "limit": 7}
    recipe["sources"].append({"path": more, "format": "llava"})
    described = lab.run("a", [lab.stage(recipe=recipe)]).describe()
    assert "data rows: 7 trained on, of 24 rows, llava" in described
    assert "data more.jsonl: 5 held out, of 5 rows, llava" in described


def test_describe_counts_the_rows_that_begin_alike(lab: Lab) -> None:
    def told(count: int) -> str:
        rows = [row(number, f"images/{COLOURS[number // 3]}.png") for number in range(0, 21, count)]
        write_rows(lab.folder / "asked.jsonl", rows)
        recipe = lab.recipe("asked.jsonl", join="shared_prefix", join_limit=2)
        return lab.run("a", [lab.stage(recipe=recipe)]).describe()

    assert "joined  14 of 21 rows begin like another one, in 7 groups of at most 2" in told(1)
    assert "joined  no two rows begin alike, so that `join` spares nothing" in told(3)
