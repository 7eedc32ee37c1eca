"""The published recipes: their values, and a step of training on generated rows of their formats."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmsft.config import RecipeConfig, SourceConfig
from mmsft.data.formats.media_tags import COLUMNS
from tests.makers import Lab, finish, picture, write_rows

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "data" / "formats" / "fixtures"
FOLDER = ROOT / "data_recipes"
PUBLISHED: dict[str, tuple[str, str, int, str, list[str]]] = {
    "alpaca": ("alpaca", "assistant", 512, "size", ["alpaca"]),
    "gpt4_llm": ("alpaca", "assistant", 512, "size", ["alpaca"]),
    "vicuna": ("vicuna", "assistant", 2048, "size", ["sharegpt"]),
    "lima": ("auto", "assistant", 2048, "size", ["sharegpt"]),
    "dolly": ("auto", "assistant", 1024, "size", ["dolly"]),
    "oasst1": ("auto", "assistant", 2048, "size", ["openassistant"]),
    "baize": ("data_recipes/templates/baize.jinja", "all", 512, "size", ["baize"] * 3),
    "orca": ("auto", "assistant", 2048, "size", ["orca"] * 2),
    "orca2": ("auto", "assistant", 4096, "size", ["orca"]),
    "flan2021": ("auto", "assistant", 1280, "proportional", ["inputs_targets"] * 4),
    "p3": ("auto", "assistant", 1280, "size", ["inputs_targets"] * 2),
    "xp3": ("auto", "assistant", 1280, "size", ["inputs_targets"] * 3),
    "super_natural_instructions": ("auto", "completion", 1152, "size", ["natural_instructions"]),
    "self_instruct": ("auto", "assistant", 1024, "size", ["self_instruct"]),
    "unnatural_instructions": ("auto", "assistant", 1024, "size", ["unnatural_instructions"]),
    "tulu": ("auto", "assistant", 2048, "size", ["messages"] * 7),
    "llava_pretrain_595k": ("plain", "assistant", 2048, "size", ["llava"]),
    "llava_pretrain_558k": ("plain", "assistant", 2048, "size", ["llava"]),
    "llava_instruct_158k": ("vicuna", "assistant", 2048, "size", ["llava"] * 3),
    "llava_mix_665k": ("vicuna", "assistant", 2048, "size", ["llava"]),
    "sharegpt4v": ("vicuna", "assistant", 2048, "size", ["llava"]),
    "sharegpt4v_pretrain": ("vicuna", "assistant", 2048, "size", ["llava"]),
    "allava": ("vicuna", "assistant", 2048, "size", ["llava", "llava", "sharegpt"]),
    "vision_flan": ("vicuna", "assistant", 2048, "size", ["llava"]),
    "pmc_vqa": ("auto", "assistant", 512, "size", ["pmc_vqa"]),
    "mimic_it": ("auto", "completion", 2048, "size", ["mimic_it"]),
    "lamm": ("hash", "assistant", 1024, "size", ["lamm"]),
    "lamm_points": ("hash", "assistant", 1024, "size", ["lamm"]),
    "multi_instruct": ("auto", "completion", 1024, "size", ["multi_instruct", "natural_instructions"]),
    "multi_instruct_sequential": ("auto", "completion", 1024, "size", ["natural_instructions", "multi_instruct"]),
    "video_llama_pretrain": ("hash", "assistant", 1024, "weight", ["llava"] * 2),
    "video_llama_instruct": ("hash", "assistant", 1024, "size", ["llava"] * 3),
    "instructblip": ("plain", "assistant", 512, "temperature", ["llava"] * 7),
}
"""Template, what is learned, length, mixing and formats of each."""


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    return found


def test_every_recipe_is_pinned_or_of_an_asset() -> None:
    of_assets = {file.stem for file in FOLDER.glob("*.yaml") if "asset:" in file.read_text(encoding="utf-8")}
    assert {file.stem for file in FOLDER.glob("*.yaml")} == set(PUBLISHED) | of_assets
    assert not set(PUBLISHED) & of_assets


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_states_what_was_published(name: str) -> None:
    recipe = RecipeConfig.model_validate(read(name))
    formats = [source.format for source in recipe.sources]
    assert (recipe.template, recipe.learn, recipe.length, recipe.mix.by, formats) == PUBLISHED[name]
    head = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").partition("sources:")[0]
    assert all(line.startswith("# ") for line in head.splitlines())


def test_values_that_one_recipe_alone_has() -> None:
    recipes = {name: RecipeConfig.model_validate(read(name)) for name in PUBLISHED}
    flan = recipes["flan2021"]
    assert flan.mix.maximum == 3000
    assert {source.limit for source in flan.sources} == {30_000}
    assert recipes["instructblip"].mix.temperature == 2  # √size
    assert [source.weight for source in recipes["video_llama_pretrain"].sources] == [100, 24]
    natural = recipes["super_natural_instructions"].sources[0].options
    assert natural == {"definition": True, "positive": 2, "negative": 0, "budget": 1024}
    for name in ("orca", "multi_instruct_sequential"):
        assert recipes[name].mix.order == "sequential"
    assert recipes["multi_instruct"].mix.order == "shuffled"
    assert "erase" in recipes["orca2"].sources[0].options
    assert [name for name, recipe in recipes.items() if recipe.too_long == "trim"] == [
        *("vicuna", "tulu", "llava_instruct_158k", "llava_mix_665k", "sharegpt4v", "allava")
    ]


def sound(format: str, only: str = "") -> list[dict[str, Any]]:
    """Returns the rows of a format's fixture that need no options or tools, those of one medium if it is named."""
    cases = map(json.loads, (FIXTURES / f"{format}.jsonl").read_text(encoding="utf-8").splitlines())
    needs = ("options", "calls")
    rows = [case["row"] for case in cases if case["kind"] != "broken" and not any(case.get(need) for need in needs)]
    return [row for row in rows if not only or only in row]


def generated(folder: Path, source: SourceConfig) -> Path:
    """Writes rows of a source's format as its files hold them, with their media."""
    name = str(source.name)
    rows = sound(source.format, "pcl" if name == "points" else "image" if source.format == "lamm" else "")
    place = folder / name
    place.mkdir()
    for file in ("a.jpg", "b.jpg", "cat.jpg", "f.jpg", "c.mp4", "v.mp4", "s.wav", "a.npy", "i1", "i2", "i3"):
        picture(place / "made.png", "red", side=100).rename(place / file)
    if source.format == "pmc_vqa":
        whole = {**sound("pmc_vqa", "Anwser")[0]} if sound("pmc_vqa", "Anwser") else {}
        row = whole or {**_pmc(), "Answer": "B"}
        lines = [",".join(row), ",".join(f'"{value}"' for value in row.values())]
        (place / "rows.csv").write_text("\n".join(lines) + "\n")
        return place / "rows.csv"
    if source.format == "natural_instructions":
        task = {**rows[0], "Instances": [{"id": "1", "input": "4, 5", "output": ["9"]}]}
        (place / "task001.json").write_text(json.dumps(task))
        return place / "task001.json"
    if source.format == "mimic_it":
        data = {f"A_{n}": {**row, "image_ids": row["images"], "rel_ins_ids": []} for n, row in enumerate(rows)}
        (place / "rows.json").write_text(json.dumps({"meta": {}, "data": data}))
        return place / "rows.json"
    return write_rows(place / "rows.jsonl", rows)


def _pmc() -> dict[str, str]:
    case = json.loads((FIXTURES / "pmc_vqa.jsonl").read_text(encoding="utf-8").splitlines()[0])
    return {name: value for name, value in case["row"].items() if name not in ("Answer", "Anwser")}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab.make(tmp_path_factory.mktemp("lab"), max_position_embeddings=1024)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_step_is_trained_on_rows_of_the_recipes_formats(
    name: str, lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    recipe = read(name)
    for source in recipe["sources"]:
        file = generated(tmp_path, SourceConfig.model_validate(source))
        source |= {"path": str(file), "media_root": str(file.parent)}
    recipe |= {"template": recipe.get("template", "chatml"), "length": 1000, "validation": None}
    model = lab.model()
    image = model["towers"]["image"]
    model["towers"] = dict.fromkeys(["image", *(it for it in COLUMNS if it != "image"), "points"], image)
    stage = lab.stage(recipe=recipe, train={"decoder.lora": {"lr": 1e-3}}, duration="1 steps", batch="8 examples")
    run = lab.run(f"run-{name}", [{**stage, "micro_batch": "1000 tokens"}], model=model)
    [step] = finish(run)
    assert step.loss > 0
    assert step.totals.entries == 0
