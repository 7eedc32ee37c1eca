"""Looking at data: recipes by themselves, every row's fate, and what rows are made of."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmsft.config import RecipeConfig
from mmsft.errors import ConfigError
from mmsft.run.audit import audit
from mmsft.run.stats import stats, utilisation
from mmsft.run.targets import load_target
from tests.makers import Command, Lab, picture, write_rows


def recipe_file(lab: Lab, name: str = "mine", **changes: Any) -> Path:
    file = lab.folder / "data_recipes" / f"{name}.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(yaml.safe_dump(lab.recipe(**changes)), encoding="utf-8")
    return file


def tokenizer(lab: Lab) -> str:
    return str(lab.folder / "decoder")


def test_a_recipe_by_itself_is_read_by_name_or_file(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    file = recipe_file(lab)
    monkeypatch.chdir(lab.folder)
    for name in ("mine", str(file), "data_recipes/mine.yaml"):
        run = load_target(name, ["length=99"], tokenizer(lab))
        [stage] = run.config.stages
        assert stage.recipe == RecipeConfig.model_validate(lab.recipe(length=99))
    with pytest.raises(ConfigError, match=r"no recipe 'mien' \(did you mean 'mine'\?\)"):
        load_target("mien", [], tokenizer(lab))
    with pytest.raises(ConfigError, match=r"recipe.lenth: unknown key \(did you mean 'length'\?\)"):
        load_target("mine", ["lenth=99"], tokenizer(lab))


def test_a_run_has_a_tokenizer_of_its_own(lab: Lab) -> None:
    file = lab.write(lab.config("a"))
    assert load_target(str(file)).config.out == str(lab.folder / "a")
    with pytest.raises(ConfigError, match="is a run, and has one of its own"):
        load_target(str(file), [], tokenizer(lab))


def test_of_a_recipe_alone_each_medium_is_a_token(lab: Lab) -> None:
    run = load_target(str(recipe_file(lab)), [], tokenizer(lab))
    [stage] = run.config.stages
    [source] = stats(run, stage).sources
    assert source.media["image"] == source.slots["image"] == 16  # of 24 rows every third is text


def test_every_row_of_every_source_ends_in_the_audit_with_its_reason(lab: Lab) -> None:
    rows = lab.rows(20)
    rows[3] = {"conversations": [{"from": "human", "value": "x" * 500}, {"from": "gpt", "value": "y"}]}
    rows[4] = {"conversations": "nothing"}
    rows[5]["image"] = "images/nowhere.png"
    rows[7]["image"] = "images/broken.png"
    (lab.folder / "images" / "broken.png").write_bytes(picture(lab.folder / "whole.png", "red").read_bytes()[:40])
    write_rows(lab.folder / "some.jsonl", rows)
    recipe = lab.recipe("some.jsonl")
    recipe["sources"][0]["name"] = "some"
    recipe["sources"].append({"path": str(lab.folder / "rows.jsonl"), "format": "llava", "name": "sound"})
    run = lab.run("a", [lab.stage(recipe=recipe)])
    [found] = audit(run).stages
    assert found.rows == 44
    assert dict(found.outcome.trained.counts["sound"]) == {"used": 24}
    assert dict(found.outcome.trained.counts["some"]) == {"used": 16, "dropped": 1, "failed": 3}
    assert not found.ok
    assert sum(reason.rows for reason in found.outcome.trained.reasons) == 4
    told = "\n".join(reason.first for reason in found.outcome.trained.reasons)
    for part in ("some.jsonl:4", "some.jsonl:5", "some.jsonl:6", "nowhere.png", "broken.png"):
        assert part in told
    [headers] = audit(run, decode=False).stages
    assert len(headers.lost) <= len(found.lost) == 4


def test_reasons_that_differ_in_names_and_numbers_are_one(lab: Lab) -> None:
    write_rows(lab.folder / "some.jsonl", [{**row, "image": f"{number}.png"} for number, row in enumerate(lab.rows(9))])
    run = lab.run("a", [lab.stage(recipe=lab.recipe("some.jsonl"))])
    [found] = audit(run).stages
    assert sorted(reason.rows for reason in found.outcome.trained.reasons) in ([3, 6], [9])


def test_trimmed_rows_are_counted_apart(lab: Lab) -> None:
    turns = [{"from": who, "value": f"{who} {number}"} for number in range(9) for who in ("human", "gpt")]
    write_rows(lab.folder / "long.jsonl", [{"conversations": turns}] * 3)
    run = lab.run("a", [lab.stage(recipe=lab.recipe("long.jsonl", too_long="trim"))])
    [found] = audit(run).stages
    assert dict(found.outcome.trained.counts["rows"]) == {"trimmed": 3}
    assert found.ok
    assert "its last turns are left out" in found.outcome.trained.reasons[0].first


def test_a_template_that_never_ends_a_reply_is_found(lab: Lab) -> None:
    file = lab.folder / "endless.jinja"
    file.write_text(
        "{% for message in messages %}[{{ message.role }}] {{ message.content }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    run = lab.run("a", [lab.stage(recipe=lab.recipe(template=str(file)))])
    [found] = audit(run).stages
    assert any("no token that ends a reply is learned" in problem for problem in found.problems)
    assert not audit(run).ok
    assert audit(lab.run("b")).ok


def test_lengths_tokens_and_duplicates_are_counted_by_source(lab: Lab) -> None:
    recipe = lab.recipe()
    recipe["sources"].append({"path": str(lab.folder / "rows.jsonl"), "format": "llava", "name": "again"})
    run = lab.run("a", [lab.stage(recipe=recipe)])
    [stage] = run.config.stages
    found = stats(run, stage)
    one, again = found.sources
    assert one.parts() == again.parts()
    assert one.duplicates + again.duplicates == 24  # the rows of a step are shuffled, so that either may come first
    encoding, mixture = run.encoding(stage), run.mixture(stage.recipe)
    lengths = [len(encoding.row(mixture, pair)) for pair in mixture.train if pair[0] == 0]
    assert sorted(one.lengths) == sorted(lengths)
    assert one.parts()["max"] == max(lengths)
    assert one.tokens == sum(lengths)


def test_utilisation_is_what_packs_hold() -> None:
    assert utilisation([600, 400, 500, 500, 3000], 1000) == (1.0, 1)
    assert utilisation([600, 600], 1000) == (0.6, 0)
    assert utilisation([3000], 1000) == (0.0, 1)


def test_the_commands_print_tables_or_one_json_object(lab: Lab, mmsft: Command) -> None:
    file = recipe_file(lab)
    shown = mmsft("data", "stats", file, "--tokenizer", tokenizer(lab))
    assert "packs of 2,048 tokens" in shown.out
    found = json.loads(mmsft("data", "stats", file, "--tokenizer", tokenizer(lab), "--json").out)
    assert found["sources"][0]["rows"] == 24
    checked = mmsft("data", "check", file, "--tokenizer", tokenizer(lab))
    assert checked.code == 0
    assert "rows: 24 used, 0 trimmed, 0 dropped, 0 failed, of 24 rows" in checked.out
    assert json.loads(mmsft("data", "check", file, "--tokenizer", tokenizer(lab), "--json").out)["ok"]
    assert "1 token⟩" in mmsft("data", "show", file, "--tokenizer", tokenizer(lab), "--rows", "2").out
    (lab.folder / "rows.jsonl").write_text('{"conversations": []}\n')
    assert mmsft("data", "check", file, "--tokenizer", tokenizer(lab)).code == 2
