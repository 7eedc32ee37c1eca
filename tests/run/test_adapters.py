"""Each adapter in a run: what trains, what is saved, and that its loss doesn't depend on how it is computed."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

from mmsft.data import collate
from mmsft.data.tree import join
from mmsft.errors import ConfigError
from mmsft.model.names import named_parameters
from mmsft.run import Run, load_run, open_run
from mmsft.run.doctor import doctor
from mmsft.types import Context
from tests.makers import COLOURS, Lab, finish, tensors_of, write_rows
from tests.model.blip import bert
from tests.model.seq2seq import FAMILIES, folder
from tests.run.test_plan import foretold

QUERIES: dict[str, Any] = {"queries": 2, "layers": 2, "heads": 2, "width": 8, "inner": 16}
RESAMPLER = {"latents": 3, "depth": 2, "heads": 2, "head_width": 4, "frames": 4}
ADAPTERS: dict[str, dict[str, Any]] = {
    "linear": {"kind": "linear", "time": 2, "stride": 2, "end_of": "frame"},
    "mlp": {"kind": "mlp", "depth": 3, "shuffle": 2, "norm": True, "rms": 0.1},
    "resampler": {"kind": "resampler", **RESAMPLER},
    "qformer": {"kind": "qformer", **QUERIES},
    "video_qformer": {"kind": "video_qformer", **QUERIES, "frame": {**QUERIES, "queries": 3}, "frames": 4},
    "audio_qformer": {"kind": "audio_qformer", **QUERIES},
    "instructed": {"kind": "qformer", **QUERIES, "instruction": 12},
}
UNREAD = ("towers.image.adapter.frame.qformer.encoder.layer.1.intermediate.", "layer.1.output.")
"""What the last layer of an instructed Q-Former makes of the instruction, which goes nowhere (so in InstructBLIP)."""


def strips(lab: Lab) -> None:
    """Puts strips of 1 to 3 frames in the place of pictures."""
    for number, colour in enumerate(COLOURS):
        strip = Image.linear_gradient("L").resize((8 * (number % 3 + 1), 8)).convert("RGB")
        strip.paste(colour, (0, 0, 5, 5))
        strip.save(lab.folder / f"images/{colour}.png")


def run_of(lab: Lab, adapter: dict[str, Any], out: str = "a", **stage: Any) -> Run:
    strips(lab)
    if "instruction" in adapter:
        adapter = adapter | {"tokenizer": str(bert(lab.folder / "bert"))}
    tower = {"modality": {"kind": "tests.run.strip:Strip"}, "adapter": adapter}
    model = lab.model() | {"towers": {"image": tower}}
    return lab.run(out, [lab.stage(**{"train": {"towers.image.adapter": {"lr": 1e-2}}, **stage})], model=model)


@pytest.mark.parametrize("name", ADAPTERS)
def test_it_trains_alone_and_a_new_process_has_what_it_learned(lab: Lab, name: str) -> None:
    run = run_of(lab, ADAPTERS[name], duration="2 steps")
    before = {key: it.detach().clone() for key, it in named_parameters(run.model()).items()}
    assert all(step.loss > 0 for step in finish(run))
    reopened = named_parameters(open_run(run.folder).model)
    moved = {key for key, old in before.items() if not torch.equal(old, reopened[key].detach().cpu())}
    unread = {key for key in before if any(part in key for part in UNREAD)}
    assert moved == {key for key in before if key.startswith("towers.image.adapter.")} - unread
    assert bool(unread) == (name == "instructed")
    saved = tensors_of(run.folder)
    assert all(torch.equal(saved[key], reopened[key]) for key in moved)


@pytest.mark.parametrize("name", ADAPTERS)
def test_its_loss_and_gradient_do_not_depend_on_how_a_step_is_computed(lab: Lab, name: str) -> None:
    both = {"towers.image": {"lr": 1e-2}, "decoder.lora": {"lr": 1e-2}}
    report = doctor(run_of(lab, ADAPTERS[name], train=both))
    assert report.failed == []
    assert {proof.name for proof in report.proofs if proof.skipped} == {"autocast"}


@pytest.mark.parametrize("name", ADAPTERS)
def test_the_plan_can_follow_it(lab: Lab, name: str) -> None:
    forecast, _, _ = foretold(run_of(lab, ADAPTERS[name]))
    assert forecast.peak > forecast.standing > 0


def test_a_frozen_part_of_an_adapter_stays_as_it_is(lab: Lab) -> None:
    train = {"towers.image.adapter.video": {"lr": 1e-2}}
    run = run_of(lab, ADAPTERS["video_qformer"], duration="2 steps", train=train)
    before = named_parameters(run.model())
    finish(run)
    saved = tensors_of(run.folder)
    moved = {key for key, tensor in saved.items() if not torch.equal(tensor, before[key])}
    assert moved == {key for key in before if key.startswith("towers.image.adapter.video.")}
    assert {key for key in saved if key.startswith("towers.image.adapter.frame.")}


def test_the_resolved_config_gives_the_same_adapters_again(lab: Lab) -> None:
    run = run_of(lab, ADAPTERS["video_qformer"], duration="1 steps")
    finish(run)
    again = load_run(run.folder).config.model.towers["image"].adapter
    assert again == run.config.model.towers["image"].adapter


def test_rows_that_ask_otherwise_about_a_picture_share_what_is_before_it_and_are_proven(lab: Lab) -> None:
    questions = ["what is it?", "what is it?", "how many?", "which one is it?", "is this the one?", "which colour?"]
    talks = (
        [{"from": "human", "value": f"Look. <image> {question}"}, {"from": "gpt", "value": "a" * (number % 4 + 1)}]
        for number, question in enumerate(questions)
    )
    write_rows(lab.folder / "rows.jsonl", [{"image": "images/red.png", "conversations": talk} for talk in talks])
    stage: dict[str, Any] = {"recipe": lab.recipe(join="shared_prefix"), "train": {"towers.image": {"lr": 1e-2}}}
    run = run_of(lab, ADAPTERS["instructed"], **stage)
    assert doctor(run).failed == []
    recipe = run.config.stages[0].recipe
    mixture, encoder = run.mixture(recipe), run.encoder(recipe)
    rows = [encoder.encode(mixture.conversation(pair)) for pair in mixture.train]
    tree = join(rows)
    assert len(tree.media) == len(set(questions))
    assert tree.segments[0].end == int(rows[0].media[0].slots[0])


@pytest.mark.parametrize("wrong", ["questions of others", "padding is read"])
def test_a_batch_that_mixes_up_what_is_asked_is_found(lab: Lab, monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    real = collate._context

    def mixed_up(*args: Any) -> Context:
        found = real(*args)
        if wrong == "padding is read":
            return replace(found, mask=torch.ones_like(found.mask))
        return replace(found, ids=found.ids.roll(1, 0), mask=found.mask.roll(1, 0))

    monkeypatch.setattr(collate, "_context", mixed_up)
    report = doctor(run_of(lab, ADAPTERS["instructed"], train={"towers.image": {"lr": 1e-2}}))
    assert report.failed[0].name == "towers"


def test_an_encoder_decoder_reads_media_by_what_is_asked(lab: Lab) -> None:
    folder(lab.folder / "decoder", FAMILIES[0])
    strips(lab)
    adapter = {**ADAPTERS["instructed"], "tokenizer": str(bert(lab.folder / "bert"))}
    tower = {"modality": {"kind": "tests.run.strip:Strip"}, "adapter": adapter}
    stage = lab.stage(recipe=lab.recipe(template="plain"), train={"towers.image": {"lr": 1e-2}})
    model = lab.model(lora=None) | {"towers": {"image": tower}}
    report = doctor(lab.run("a", [stage], model=model))
    assert (report.failed, {proof.name for proof in report.proofs if proof.skipped}) == (
        [],
        {"packing", "left padding", "autocast"},
    )


def test_learning_prompts_that_the_adapter_reads_is_refused_before_training(lab: Lab) -> None:
    run = run_of(lab, ADAPTERS["instructed"], recipe=lab.recipe(learn="all"))
    with pytest.raises(ConfigError, match=r"learn: all learns prompts too, which the adapter of towers\.image reads"):
        finish(run)
