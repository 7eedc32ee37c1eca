"""Each adapter in a run: what it trains, what of it is saved, and that its loss doesn't depend on how it is computed."""

from typing import Any

import pytest
import torch
from PIL import Image

from mmsft.model.names import named_parameters
from mmsft.run import Run, load_run, open_run
from mmsft.run.doctor import doctor
from tests.makers import COLOURS, Lab, finish, tensors_of
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
}


def strips(lab: Lab) -> None:
    """Puts strips of 1 to 3 frames in the place of pictures."""
    for number, colour in enumerate(COLOURS):
        strip = Image.linear_gradient("L").resize((8 * (number % 3 + 1), 8)).convert("RGB")
        strip.paste(colour, (0, 0, 5, 5))
        strip.save(lab.folder / f"images/{colour}.png")


def run_of(lab: Lab, adapter: dict[str, Any], out: str = "a", **stage: Any) -> Run:
    strips(lab)
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
    assert moved == {key for key in before if key.startswith("towers.image.adapter.")}
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
