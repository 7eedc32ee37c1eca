"""All problems of a config come at once, each with its place and a way out."""

import re
from pathlib import Path

import pytest

from mmsft.config import read_config
from mmsft.errors import ConfigError
from tests.config.small import RUN, problems, read, swapped


def test_a_valid_config_is_read_with_its_recipes_inlined() -> None:
    config, origins = read()
    assert [stage.name for stage in config.stages] == ["align", "instruct"]
    assert config.stages[1].recipe.source_names == ("a.jsonl", "chat")
    assert config.stages[1].train["decoder.lora"].lr == 1e-4
    assert origins.find(("stages", 1, "recipe", "validation", "fraction")) == "data_recipes/mix.yaml:4"
    assert origins.find(("stages", 1, "duration")) == "run.yaml:17"
    assert origins.find(("seed",)) == "default"


def test_six_different_mistakes_give_six_lines_each_with_its_line() -> None:
    text = swapped(
        (
            "train: {towers.image.adapter: {lr: 1e-3}}",
            "trian: {towers.image.adapter: {lr: 1e-3}}\n    train: {a: {lr: 1}}",
        ),
        ("r: 4", "r: four"),
        ("1 epoch", "1 epoc"),
        ("lr: 2e-5", "lr: -1"),
        ("recipe: mix", "recipe: mxi"),
        ("format: llava}]}", "format: llava}], learn: assistent}"),
    )
    found = problems(text)
    assert len(found) == 6
    assert all(re.match(r"run\.yaml:\d+: [a-z0-9._]+: ", line) for line in found)
    for line, said in {
        3: "model.decoder.lora.r: should be a whole number, got 'four'",
        8: "(did you mean 'assistant'?)",
        9: "stages.align.trian: unknown key (did you mean 'train'?)",
        11: "(did you mean 'epochs'?)",
        14: "stages.instruct.recipe: no recipe 'mxi' (did you mean 'mix'?)",
        16: "stages.instruct.train.towers.image.adapter.lr: should be greater than 0, got -1",
    }.items():
        assert any(said in problem and problem.startswith(f"run.yaml:{line}:") for problem in found), (line, found)


def test_a_name_used_twice_is_reported_beside_a_mistake_inside_the_list() -> None:
    found = problems(swapped(("name: instruct", "name: align"), ("100 steps", "100 stepps")))
    assert len(found) == 2
    assert any("two stages have one name, align" in line for line in found)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("out: runs/small\n", "", "run.yaml:1: out: required, and not given"),
        ("name: tiny", "name: ''", "model.decoder.name: is empty; write a text"),
        ("name: tiny", "name:", "model.decoder.name: should be text, this is empty"),
        ("out: runs/small\n", "out: runs/small\nseed: 1e30\n", "seed: should be"),
        ("name: tiny", "name: 7", "model.decoder.name: should be text, got 7; put it in quotes"),
        ("lr: 1e-3", "lr: true", "doesn't take true or false, got true"),
        ("1 epoch", "3", "write an amount with its unit"),
        ("1 epoch", "{value: 3, unit: steps}", "write an amount with its unit"),
        ("16 examples", "16 steps", "16 steps is counted in steps; this setting takes examples or tokens"),
        ("1 epoch", "1 epoch\n    schedule: {warmup: 2}", "stages.align.schedule.warmup: write the part of the stage"),
        (
            "1 epoch",
            "1 epoch\n    clip: false",
            "stages.align.clip: doesn't take true or false, got false; null turns it",
        ),
        ("1 epoch", "1 epoch\n    clip: .inf", "stages.align.clip: should be a finite number"),
        ("1 epoch", "1 epoch\n    clip: [1]", "stages.align.clip: should be a number, this is a list"),
        ("1 epoch", "1 epoch\n    optimizer: {betas: [0, 0, 0]}", "betas: has 3 entries; give it at most 2"),
        ("1 epoch", "1 epoch\n    schedule: {floor: 1.5}", "schedule.floor: should be 1 or less, got 1.5"),
        ("1 epoch", "1 epoch\n    schedule: {decay: cos}", "'linear' or 'constant', got 'cos' (did you mean 'cosine'"),
        ("1 epoch", "1 epoch\n    activation_checkpointing: selectiv", "got 'selectiv' (did you mean 'selective'"),
        ("1 epoch", "1 epoch\n    evaluate: {every: 5 steps}", "stages.align.evaluate: validation loss needs rows"),
        ("{towers.image.adapter: {lr: 1e-3}}", "{}", "stages.align.train: has no entries; give it 1 or more"),
        ("{towers.image.adapter: {lr: 1e-3}}", "[a]", "stages.align.train: should be a mapping, this is a list"),
        (
            "{sources: [{path: data/a.jsonl, format: llava}]}",
            "{sources: []}",
            "sources: has no entries; give it 1 or more",
        ),
        (
            "format: llava}",
            "format: llava, wher: {}}",
            "stages.align.recipe.sources.a.jsonl.wher: unknown key (did you mean 'where'",
        ),
        ("format: llava}", "format: llava, where: {a: 1}}", "write a text or a list of texts"),
        ("format: llava}]", "format: llava}], validation: {}", "state exactly one of fraction, source and file"),
        ("format: llava}]", "format: llava}], validation: {source: b}", "its source 'b' isn't one of a.jsonl"),
        ("format: llava}]", "format: llava}], validation: {source: a.jsonl}", "leaves nothing to train on"),
        ("kind: fake}", "kind: fkae}", "model.towers.image.modality: unknown kind 'fkae'; known: fake"),
        ("modality: {kind: fake}", "modality: clip", "model.towers.image.modality: write a mapping with a `kind`"),
        ("    image: {", "    im.age: {", "model.towers.im.age: 'im.age' isn't a name"),
        ("name: align", "name: a/b", "stages.0.name: 'a/b' isn't a name; write letters, digits, _, . and -"),
        ("recipe: mix", "recipe: mix.yaml", "no recipe 'mix.yaml'"),
        ("recipe: mix", "recipe: 3", "stages.instruct.recipe: should be a mapping with sources, mix, template"),
        ("name: tiny", "name: tiny, dtype: float16", "precision: bf16 computes with a decoder held in bfloat16 or"),
        ("recipe: mix", "", "stages.instruct.recipe: required, and not given"),
    ],
)
def test_one_mistake_gives_one_line(old: str, new: str, said: str) -> None:
    found = problems(swapped((old, new)))
    assert len(found) == 1, found
    assert said in found[0]


def test_two_sources_of_one_name_are_told_apart_by_a_name_of_their_own() -> None:
    twice = "sources: [{path: x/a.jsonl, format: llava}, {path: y/a.jsonl, format: llava}]"
    assert (
        "two sources have one name, a.jsonl: give each a `name`"
        in problems(swapped(("sources: [{path: data/a.jsonl, format: llava}]", twice)))[0]
    )


@pytest.mark.parametrize("text", ["", "- a", "text", "3"])
def test_a_config_that_is_no_mapping_is_refused(text: str) -> None:
    Path("run.yaml").write_text(text)
    with pytest.raises(ConfigError, match="a run config is a mapping"):
        read_config(Path("run.yaml"), (), {})


def test_a_missing_config_is_named_with_the_nearest_file() -> None:
    Path("run.yaml").write_text(RUN)
    with pytest.raises(ConfigError, match=r"rum\.yaml: no such file \(did you mean 'run\.yaml'\?\)") as caught:
        read_config(Path("rum.yaml"), (), {})
    assert f"looked for {Path.cwd() / 'rum.yaml'}" in str(caught.value)


def test_a_missing_recipe_says_where_it_was_looked_for() -> None:
    assert (
        f"looked for {Path.cwd() / 'sub' / 'mix.yaml'}" in problems(swapped(("recipe: mix", "recipe: sub/mix.yaml")))[0]
    )


def test_mistakes_inside_a_recipe_carry_the_line_of_the_recipes_file() -> None:
    recipe = Path("data_recipes/mix.yaml")
    recipe.write_text(recipe.read_text() + "lenght: 3\n")
    assert problems()[0].startswith(
        "data_recipes/mix.yaml:5: stages.instruct.recipe.lenght: unknown key (did you mean 'length'"
    )


def test_a_recipe_that_is_no_yaml_is_one_problem() -> None:
    Path("data_recipes/mix.yaml").write_text("sources: [")
    found = problems()
    assert len(found) == 1
    assert found[0].startswith("run.yaml:13: stages.instruct.recipe: data_recipes/mix.yaml:1: not valid YAML")


def test_a_single_text_stands_for_a_list_of_one() -> None:
    config, _ = read(swapped(("r: 4", "r: 4, targets: q_proj")))
    assert config.model.decoder.lora is not None
    assert config.model.decoder.lora.targets == ("q_proj",)
