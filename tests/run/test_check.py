import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GraniteConfig, GraniteForCausalLM

from mmsft.errors import ConfigError
from mmsft.run import execute, load_run
from mmsft.run.check import Report, check
from tests.makers import COLOURS, Lab, finish, row, write_rows
from tests.model.tiny import llama_config


def problems_of(lab: Lab, *stages: dict[str, Any], **changes: Any) -> str:
    return "\n".join(check(lab.run("a", list(stages) or None, **changes)).problems)


def holding(report: Report, text: str) -> list[str]:
    return [note for note in report.notes if text in note]


def test_a_sound_run_is_found_sound_and_no_weight_of_the_decoder_is_read(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *args, **kwargs: pytest.fail("reads weights"))
    stage = lab.stage(recipe=lab.recipe(validation={"fraction": 0.3}))
    run = lab.run("a", [stage])
    report = check(run)
    assert report.problems == []
    train, held_out = (len(getattr(run.mixture(run.config.stages[0].recipe), part)) for part in ("train", "held_out"))
    for fact in (
        "parameters; its files hold those of the decoder",
        f"{train} rows; {train} of the first {train} read",
        f"{held_out} rows held out; {held_out} of the first {held_out} read",
        "towers.image.adapter learns, 416 parameters",
    ):
        assert any(fact in line for line in report.facts), fact


def cut_short(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def without_a_layer(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def with_another_shape(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"model.norm.weight": torch.zeros(3)}, folder / "model.safetensors", {"format": "pt"})


def without_a_shard(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    sorted(folder.glob("model-*.safetensors"))[1].unlink()


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "can't be loaded: .*model.safetensors"),
        (cut_short, "can't be loaded: .*incomplete"),
        (without_a_layer, r"lack 1 of the parameters of a LlamaForCausalLM, model\.layers\.1\.mlp\.up_proj\.weight"),
        (with_another_shape, r"lack 1 .* model\.norm\.weight \(\[16\], there it is \[3\]\)"),
        (without_a_shard, r"can't be loaded: .*model-00002-of-"),
    ],
)
def test_weights_that_are_not_there_are_found_by_the_headers_and_by_training(
    lab: Lab, spoil: Callable[[Path], None], problem: str
) -> None:
    spoil(lab.folder / "decoder")
    run = lab.run("a")
    pattern = rf"(?is){problem}"
    for empty in (True, False):
        with pytest.raises(ConfigError, match=pattern):
            run.model(empty=empty)
    assert len(check(run).problems) == 1


def test_everything_is_told_at_once(lab: Lab) -> None:
    shutil.rmtree(lab.folder / "decoder")
    shutil.rmtree(lab.folder / "clip")
    recipe = lab.recipe(template="chatmll")
    source = recipe["sources"][0]
    recipe["sources"] = [
        source | {"path": str(lab.folder / "row.jsonl")},
        source | {"name": "other", "format": "lava", "media_root": str(lab.folder / "nowhere")},
    ]
    second = lab.stage("two", recipe=lab.recipe(template="no.jinja"), init_from=str(lab.folder / "images"))
    found = problems_of(lab, lab.stage(recipe=recipe), second, loggers=["tensorbord"])
    for problem in (
        "no logger 'tensorbord'", "row.jsonl: no such file (did you mean 'rows.jsonl'?)", "unknown format 'lava'",
        "source 'other': media_root", "there is no 'chatmll'", "no.jinja can't be read", "stage two: init_from",
        "decoder: no such file", "clip: no such file",
    ):  # fmt: skip
        assert found.count(problem) == 1, f"{problem} in {found}"
    assert len(found.splitlines()) == 9


def test_what_stages_share_is_told_once(lab: Lab) -> None:
    (lab.folder / "rows.jsonl").unlink()
    found = problems_of(lab, lab.stage(), lab.stage("two"))
    assert found.count("rows.jsonl: no such file") == 1


@pytest.mark.parametrize("how", ["file", "source"])
def test_held_out_rows_that_cannot_be_read_are_a_problem(lab: Lab, how: str) -> None:
    write_rows(lab.folder / "held.jsonl", [row(1, "images/none.png"), row(2)])
    held = {"path": str(lab.folder / "held.jsonl"), "format": "llava", "name": "held"}
    recipe = lab.recipe()
    if how == "file":
        recipe["validation"] = {"file": held}
    else:
        recipe |= {"sources": [*recipe["sources"], held], "validation": {"source": "held"}}
    report = check(lab.run("a", [lab.stage(recipe=recipe)]))
    assert report.problems == [
        "stage align: 2 rows held out: 1 failed of the first 2; the budget is 1.0%",
    ]
    assert holding(report, "none.png")


def test_a_missing_held_out_file_is_a_problem(lab: Lab) -> None:
    held = {"path": str(lab.folder / "held.jsonl"), "format": "llava"}
    assert "held.jsonl: no such file" in problems_of(lab, lab.stage(recipe=lab.recipe(validation={"file": held})))


def test_what_a_stage_starts_from_must_fit_the_model(lab: Lab) -> None:
    first = lab.run("first", [lab.stage(train={"decoder.lora": {"lr": 1e-2}}, duration="1 step")])
    finish(first)
    stage = lab.stage("two", init_from=str(first.folder))
    assert problems_of(lab, stage) == ""
    found = problems_of(lab, stage, model=lab.model(lora={"r": 3}))
    assert "these weights are of another model" in found
    assert "A is [2, 16] there and [3, 16] in the model" in found


def test_a_run_under_way_is_compared_with_its_checkpoint(lab: Lab) -> None:
    run = lab.run("a", [lab.stage(train={"decoder.lora": {"lr": 1e-2}})])
    for _, step, _ in execute(run):
        if step.number == 3:
            break
    report = check(run)
    assert report.problems == []
    assert holding(report, "training goes on from 00-align-0000002")
    finish(run)
    report = check(run)
    assert holding(report, "it is complete")
    assert not holding(report, "data, templates and tokenizer: found")
    longer = check(lab.run("a", [lab.stage(train={"decoder.lora": {"lr": 1e-2}}, duration="9 steps")]))
    (problem,) = longer.problems
    assert f"init_from: {lab.folder / 'a'}" in problem
    assert "to train longer" in problem


def test_a_model_that_cannot_be_exported_is_noted_before_training(lab: Lab) -> None:
    assert not holding(check(lab.run("a")), "export")
    assert not holding(check(lab.run("a", [text_stage(lab)], model=lab.text_model())), "export")
    towers: dict[str, Any] = {**lab.model()["towers"]["image"], "adapter": {"kind": "linear"}}
    report = check(lab.run("a", model=lab.model() | {"towers": {"image": towers}}))
    assert holding(report, "`mmsft export` will not be possible: LLaVA holds an mlp2x_gelu adapter")
    size = json.loads((lab.folder / "decoder" / "config.json").read_text())["vocab_size"]
    GraniteForCausalLM(
        GraniteConfig(**llama_config(vocab_size=size).to_diff_dict(), logits_scaling=4.0)
    ).save_pretrained(lab.folder / "decoder")
    assert holding(check(lab.run("a")), "GraniteForCausalLM scales, caps or shifts its logits")


def text_stage(lab: Lab) -> dict[str, Any]:
    write_rows(lab.folder / "text.jsonl", [row(number) for number in range(8)])
    return lab.stage(recipe=lab.recipe("text.jsonl"), train={"decoder": {"lr": 1e-3}})


def test_a_broken_checkpoint_is_told_beside_the_rest(lab: Lab) -> None:
    run = lab.run("a", [lab.stage(duration="1 step")])
    finish(run)
    (lab.folder / "rows.jsonl").write_text("")
    (checkpoint,) = (run.folder / "checkpoints").glob("*-align-*")
    (checkpoint / "state.json").write_text("{}")
    found = check(load_run(run.folder)).problems
    assert len(found) == 2
    assert "damaged" in found[0]
    assert "is empty" in found[1]


def test_threads_that_move_the_rotary_embeddings_of_their_neighbours_are_refused(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    lab = Lab.make(tmp_path, rope_parameters=rope)  # made for threads of 128 tokens
    says = "stage align: recipe.length: 150 tokens; with its dynamic rotary embeddings LlamaForCausalLM"
    assert says in problems_of(lab)
    with pytest.raises(ConfigError, match="beside one of more than 128 tokens: set length to 128 or less"):
        finish(lab.run("b"))
    assert problems_of(lab, lab.stage(recipe=lab.recipe(length=128))) == ""


@pytest.mark.parametrize("pictures", [2, 8])
def test_what_joining_spares_is_told_and_noted_where_it_is_nothing(lab: Lab, pictures: int) -> None:
    rows = [row(number, f"images/{COLOURS[number % pictures]}.png") for number in range(8)]
    write_rows(lab.folder / "asked.jsonl", rows)
    report = check(lab.run("a", [lab.stage(recipe=lab.recipe("asked.jsonl", join="shared_prefix"))]))
    assert report.problems == []
    if pictures == 8:
        assert holding(report, "align: no two rows begin alike, so that `join` spares nothing")
    else:
        assert "stage align: 8 of 8 rows begin like another one, in 2 groups of at most 4" in report.facts
        (spared,) = [fact for fact in report.facts if "are spared" in fact]
        # Three of four rows needn't read the turn's beginning and their picture again.
        assert float(re.findall(r"([\d.]+)% of these rows' tokens", spared)[0]) > 25
