"""Dotted overrides reach each value of a config, and say what they could not reach."""

import pytest

from mmsft.duration import Duration
from tests.config.small import RUN, problems, read


def test_an_override_replaces_a_value_and_its_origin() -> None:
    config, origins = read(RUN, "seed=3", "stages.instruct.duration=5 steps", "stages.0.batch=8 examples")
    assert config.seed == 3
    assert config.stages[1].duration == Duration(5, "steps")
    assert config.stages[0].batch == Duration(8, "examples")
    assert origins.find(("stages", 1, "duration")) == "command line"
    assert origins.find(("stages", 1, "batch")) == "run.yaml:18"


def test_an_existing_name_with_dots_is_found() -> None:
    config, _ = read(RUN, "stages.instruct.train.decoder.lora.lr=3e-4")
    assert config.stages[1].train["decoder.lora"].lr == 3e-4


@pytest.mark.parametrize("override", ["train.towers.image.encoder.lr=1e-6", "train.towers.image.encoder={lr: 1e-6}"])
def test_a_new_name_with_dots_ends_before_a_setting(override: str) -> None:
    config, _ = read(RUN, f"stages.instruct.{override}")
    assert config.stages[1].train["towers.image.encoder"].lr == 1e-6
    assert len(config.stages[1].train) == 3


def test_mappings_on_the_way_are_made() -> None:
    config, origins = read(RUN, "stages.1.evaluate.every=7 steps", "stages.align.schedule.warmup=3 steps")
    assert config.stages[1].evaluate is not None
    assert config.stages[1].evaluate.every == Duration(7, "steps")
    assert config.stages[0].schedule.warmup == Duration(3, "steps")
    assert origins.find(("stages", 0, "schedule", "decay")) == "default"


def test_a_whole_mapping_from_the_command_line_is_of_the_command_line_throughout() -> None:
    config, origins = read(RUN, "stages.1.train={decoder.lora: {lr: 1e-5}}")
    assert list(config.stages[1].train) == ["decoder.lora"]
    assert origins.find(("stages", 1, "train", "decoder.lora", "lr")) == "command line"


def test_recipes_can_be_chosen_and_changed_by_source_name() -> None:
    config, _ = read(
        RUN, "stages.0.recipe.sources.a.jsonl.limit=9", "stages.0.recipe=mix", "stages.1.recipe.sources.chat.limit=5"
    )
    assert config.stages[0].recipe.sources[0].limit == 9
    assert config.stages[0].recipe.source_names == ("a.jsonl", "chat")
    assert config.stages[1].recipe.sources[1].limit == 5


def test_null_turns_a_setting_off() -> None:
    config, _ = read(RUN, "stages.0.clip=null", "model.decoder.lora=")
    assert config.stages[0].clip is None
    assert config.model.decoder.lora is None


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed", "an override is key=value"),
        ("=3", "an override is key=value"),
        ("a..b=3", "an override is key=value"),
        ("seed=[1", "the value: not valid YAML"),
        ("seed={a: 1, a: 2}", "'a' is stated twice"),
        ("stages.2.batch=1 example", "no '2' in stages; there are align, instruct"),
        ("stages.-1.batch=1 example", "no '-1' in stages"),
        ("stages.instrukt.batch=1 example", "no 'instrukt' in stages; there are align, instruct"),
        ("out.folder=x", "out is text and has no 'folder'"),
        ("sed=3", "command line: sed: unknown key (did you mean 'seed'?)"),
        ("model.towers.image.modalty.kind=x", "command line: model.towers.image.modalty: unknown key"),
        ("stages.0.train.decoder.lora.lrr=1", "stages.align.train.decoder.lora.lrr"),
    ],
)
def test_an_override_that_reaches_nothing_says_why(override: str, said: str) -> None:
    found = problems(RUN, override)
    assert any(line.startswith("command line: ") and said in line for line in found), found


def test_a_bad_override_does_not_hide_the_other_problems() -> None:
    assert len(problems(RUN, "stages.7.clip=1", "seed=x", "workers=-1")) == 3
