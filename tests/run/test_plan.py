import json
import subprocess
import sys
from dataclasses import replace
from itertools import accumulate
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from mmsft import cli
from mmsft.adapters.mlp import Projector
from mmsft.config import StageConfig
from mmsft.errors import ConfigError, OutOfMemory
from mmsft.model.names import fresh, named_parameters
from mmsft.objectives import sft
from mmsft.parallel import Ranks
from mmsft.run import Run, load_run
from mmsft.run import plan as planning
from mmsft.run.forecast import Forecast, Forecaster
from mmsft.run.machines import Machine, named, this_machine
from mmsft.run.plan import StagePlan, plan
from mmsft.run.simulate import Unfollowed
from mmsft.run.stages import Session, optimizer_of, place
from mmsft.run.survey import Survey, survey
from mmsft.train import loop
from mmsft.types import Batch
from tests.makers import Lab, finish
from tests.model.seq2seq import folder

ALL = {"decoder": {"lr": 1e-3}, "towers.image": {"lr": 1e-3}}
SMALL = Machine("a small one", 1, False, 2**40, 0, 1e11, 1e11, 1e10, 1e-6, measured=False)


def survey_of(run: Run, stage: StageConfig, *, packs: bool = True) -> Survey:
    return survey(run, stage, packs=packs, processes=1, rows=1000)


def foretold(run: Run, *, packs: bool = True, gpu: bool = False) -> tuple[Forecast, Batch, bool]:
    """Returns what is foretold of the largest micro-batch of a run's only stage, and that one."""
    (stage,) = run.config.stages
    found = survey_of(run, stage, packs=packs)
    forecast = Forecaster(run, run.model(empty=True), replace(SMALL, gpu=gpu)).largest(stage, found)
    return forecast, found.batch(forecast.shape), found.accumulates(forecast.shape)


def allocated(run: Run, batch: Batch, accumulates: bool) -> int:
    """Returns the most bytes that torch's allocator gives out during a step, weights and optimiser included."""
    (stage,) = run.config.stages
    ranks, model = Ranks(run.config.precision), run.model()
    place(model, ranks)
    optimizer = optimizer_of(
        Session(run, ranks, model, fresh(named_parameters(model))), stage, run.mixture(stage.recipe)
    )
    model.checkpoint_activations(stage.activation_checkpointing)
    model.train()
    learning = [p for group in optimizer.param_groups for p in group["params"]]

    def forward_backward() -> None:
        with ranks.autocast():
            loss = sft(model, batch, 1)
        loss.sum.backward()

    forward_backward()
    optimizer.step()
    if not accumulates:
        optimizer.zero_grad(set_to_none=True)
    state = [value for values in optimizer.state.values() for value in values.values()]
    storages = [tensor.untyped_storage() for tensor in (*model.parameters(), *model.buffers(), *state)]
    held = {storage.data_ptr(): storage.nbytes() for storage in storages}
    before = sum(held.values()) + sum(p.grad.nbytes for p in learning if p.grad is not None) + inputs_of(batch)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        forward_backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
    events: Any = profiled.profiler
    sizes: list[int] = [event.nbytes() for event in events.kineto_results.events() if event.name() == "[memory]"]
    most: int = before + max(accumulate(sizes))
    return most


def inputs_of(batch: Batch) -> int:
    """Returns the bytes of a batch's tensors."""
    sizes: list[int] = []

    def count(tensor: Tensor) -> Tensor:
        sizes.append(tensor.nbytes)
        return tensor

    batch.map(count)
    return sum(sizes)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ({}, {}),
        ({"lora": None}, {"train": ALL}),
        ({"lora": None}, {"train": ALL, "activation_checkpointing": "selective"}),
        ({"lora": None}, {"train": ALL, "activation_checkpointing": "full"}),
        ({"lora": None}, {"train": ALL, "batch": "16 examples"}),
        ({"dtype": "bfloat16"}, {"train": {"decoder.lora": {"lr": 1e-3}}}),
    ],
    ids=["projector", "all", "selective", "checkpointing", "accumulation", "lora on bf16"],
)
def test_memory_is_that_of_the_allocator(
    lab: Lab, model: dict[str, Any], changes: dict[str, Any], precision: str
) -> None:
    run = lab.run("a", [lab.stage(**changes)], model=lab.model(**model), precision=precision)
    forecast, batch, accumulates = foretold(run)
    assert accumulates == ("batch" in changes)
    # All but buffers inside of kernels, which no tensor holds: tens of kB in bf16.
    assert forecast.cost.peak == pytest.approx(allocated(run, batch, accumulates), rel=0.02, abs=40_000)


def test_each_part_is_what_its_name_says(lab: Lab) -> None:
    stage = lab.stage(train=ALL, batch="16 examples")
    run = lab.run("a", [stage], model=lab.model(lora=None), precision="bf16")
    forecast, batch, _ = foretold(run)
    model = run.model()
    weights = sum(parameter.nbytes for parameter in model.parameters())
    parts = forecast.cost.parts
    assert parts["weights"] == pytest.approx(weights, rel=0.01)  # and a few buffers
    assert 0 < parts["weights in 16 bits"] <= weights / 2
    assert parts["gradients"] == pytest.approx(weights, rel=0.01)
    assert parts["optimiser"] == pytest.approx(2 * weights, rel=0.01)
    assert parts["inputs"] == inputs_of(batch)
    assert forecast.parts == {name: size for name, size in parts.items() if size} | {"libraries": forecast.libraries}


def test_what_is_frozen_has_neither_gradient_nor_moments_and_idle_lora_costs_nothing(lab: Lab) -> None:
    only = {"towers.image.adapter": {"lr": 1e-3}}
    run = lab.run("b", [lab.stage(train=only)], model=lab.model(lora=None))
    with_lora, without = foretold(lab.run("a", [lab.stage(train=only)]))[0], foretold(run)[0]
    assert with_lora.cost.parts["optimiser"] == without.cost.parts["optimiser"]
    assert with_lora.cost.parts["activations"] == without.cost.parts["activations"]
    learning = [p for name, p in named_parameters(run.model()).items() if name.startswith("towers.image.adapter.")]
    assert without.cost.parts["optimiser"] == sum(2 * p.nbytes + 4 for p in learning)  # and the number of steps


def test_padded_threads_and_encoder_decoders_are_followed_too(lab: Lab) -> None:
    padded, _, _ = foretold(lab.run("a"), packs=False)
    assert padded.cost.flops > 0
    folder(lab.folder / "decoder", "t5")
    stage = lab.stage(train={"decoder": {"lr": 1e-3}}, recipe=lab.recipe(template="plain"))
    two_sided, _, _ = foretold(lab.run("b", [stage], model=lab.model(lora=None)))
    assert two_sided.cost.flops > 0


def test_on_a_gpu_a_tree_takes_no_scores(lab: Lab) -> None:
    run = lab.run("a", [lab.stage(recipe=lab.recipe(join="shared_prefix"))], precision="fp32")
    here, there = foretold(run)[0].cost, foretold(run, gpu=True)[0].cost
    assert there.peak < here.peak
    assert len(there.ops) < len(here.ops)


def test_arithmetic_is_six_times_weights_times_tokens(lab: Lab) -> None:
    run = lab.run("a", [lab.stage(train=ALL)], model=lab.model(lora=None), precision="fp32")
    forecast, batch, _ = foretold(run)
    matrices = {name: p.numel() for name, p in named_parameters(run.model()).items() if p.ndim == 2}
    layers = sum(count for name, count in matrices.items() if name.startswith("decoder.model.layers"))
    expected = 6 * (layers * batch.input_ids.numel() + matrices["decoder.lm_head.weight"] * len(batch.targets.token))
    # The tower's and attention's own products come to it.
    assert expected < forecast.cost.flops < 2 * expected


def test_arithmetic_through_frozen_weights_is_four_times_weights_times_tokens(lab: Lab) -> None:
    stage = lab.stage(train={"decoder.lora": {"lr": 1e-3}})
    run = lab.run("a", [stage], model=lab.model(dtype="bfloat16"), precision="bf16")
    forecast, batch, _ = foretold(run)
    matrices = {name: p.numel() for name, p in named_parameters(run.model()).items() if p.ndim == 2}
    layers = sum(count for name, count in matrices.items() if name.startswith("decoder.model.layers"))
    expected = 4 * (layers * batch.input_ids.numel() + matrices["decoder.lm_head.weight"] * len(batch.targets.token))
    # The first layer's inputs need no gradient; LoRA's own products come to it.
    assert 0.8 * expected < forecast.cost.flops < 2 * expected


def test_the_largest_micro_batch_is_one_that_training_meets(lab: Lab) -> None:
    stage = lab.stage(batch="8 examples", duration="2 epochs")
    run = lab.run("a", [stage])
    found = survey_of(run, run.config.stages[0])
    assert found.whole
    steps = finish(run)
    met = [[(b.input_ids.numel(), len(b.targets.token)) for b in step.data.micro] for step in steps]
    foreseen = [[(shape.tokens, shape.targets) for shape in found.shapes if shape.step == n] for n in range(len(steps))]
    assert foreseen == met
    assert (found.tokens, found.targets) == (sum(step.tokens for step in steps), sum(step.targets for step in steps))
    forecast, _, _ = foretold(run)
    assert forecast.shape.tokens == max(tokens for step in met for tokens, _ in step)


def planned(run: Run, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> StagePlan:
    monkeypatch.setattr(planning, "this_machine", lambda: machine)
    return plan(run, tries=False).stages[0]


def test_what_does_not_fit_is_told_with_settings_that_do(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = lab.stage(train=ALL, batch="16 examples", micro_batch="600 tokens", duration="1 step")
    run = lab.run("a", [stage], model=lab.model(lora=None))
    roomy = planned(run, SMALL, monkeypatch)
    assert roomy.fits
    assert not roomy.ways
    room = int(0.75 * roomy.forecast.peak + 0.25 * (roomy.forecast.standing + roomy.forecast.libraries))
    tight = planned(run, replace(SMALL, memory=room), monkeypatch)
    assert not tight.fits
    assert tight.ways
    for way in tight.ways:
        changed = planned(load_run(lab.folder / "a.yaml", way.settings), replace(SMALL, memory=room), monkeypatch)
        assert changed.fits, way.settings
        assert changed.forecast.peak <= way.peak
        assert all(setting in "\n".join(tight.lines()) for setting in way.settings)
    hopeless = planned(run, replace(SMALL, memory=1000), monkeypatch)
    assert not hopeless.ways
    assert "train model.decoder.lora" in "\n".join(hopeless.lines())


def test_a_step_without_memory_tells_what_would_fit(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = lab.stage(train=ALL, batch="16 examples", micro_batch="600 tokens")
    run = lab.run("a", [stage], model=lab.model(lora=None))

    def full(*args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(loop, "backward", full)
    with pytest.raises(OutOfMemory, match="step 1: out of memory; its largest micro-batch has") as raised:
        finish(run)
    assert "stages.align.activation_checkpointing=full" in str(raised.value)
    assert "stages.align.micro_batch='" in str(raised.value)


@pytest.mark.parametrize(
    ("error", "ours"),
    [
        (MemoryError(), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
            True,
        ),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_of_the_errors_of_a_step_those_of_memory_are_told_apart(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, error: Exception, ours: bool
) -> None:
    def failing(*args: object) -> None:
        raise error

    monkeypatch.setattr(loop, "backward", failing)
    with pytest.raises(OutOfMemory if ours else RuntimeError):
        finish(lab.run("a"))


def test_code_that_looks_at_values_is_named(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def looking(self: Projector, features: Any, grid: Any) -> Any:
        return features.values if features.values.sum() > 0 else -features.values

    monkeypatch.setattr(Projector, "forward", looking)
    with pytest.raises(Unfollowed, match="LlamaForCausalLM and its towers can't be followed without values"):
        foretold(lab.run("a"))


@pytest.mark.parametrize(
    ("text", "count", "name"), [("8xA100-80G", 8, "A100-80G"), ("2XH100", 2, "H100-80G"), ("l4", 1, "L4-24G")]
)
def test_a_gpu_is_named_with_or_without_its_number(text: str, count: int, name: str) -> None:
    machine = named(text)
    assert (machine.count, machine.name) == (count, f"{count} x {name}")
    assert not machine.measured


@pytest.mark.parametrize("text", ["3xFOO", "A100", "0xH100", "", "8x", "1.5xH100"])
def test_a_machine_that_nobody_has_is_refused_with_those_that_are_known(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--gpus .*8xA100-80G; the names are A10-24G, A100-40G, A100-80G"):
        named(text)


def test_this_machine_is_measured_within_reason() -> None:
    machine = this_machine()
    assert machine.measured
    # From a telephone to a cluster.
    assert 1e8 < machine.wide < 1e16
    assert 1e8 < machine.bandwidth < 1e14
    assert 1e-8 < machine.launch < 1e-2
    assert 2**26 < machine.process < machine.memory + machine.process < 2**50


_FREES = """
import ctypes
import torch
from mmsft.run.machines import give_back_freed_memory, resident

def left():
    before = resident()
    some = [(torch.ones(2**21), torch.ones(2**16)) for _ in range(40)]  # 8 MiB, and what stays beside it
    small = [little for _, little in some]
    del some
    return resident() - before, small

ctypes.CDLL(None).mallopt(-3, 2**25)  # what glibc learns from blocks that are freed, if it is left to itself
kept, beside = left()
give_back_freed_memory()
print(kept, left()[0])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' C libraries have their own ways")
def test_what_large_tensors_took_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    said = subprocess.run([sys.executable, "-c", _FREES], capture_output=True, text=True, check=True).stdout
    kept, left = map(int, said.split())
    assert kept > 2**27
    assert left < 2**24


def enter(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["mmsft", "plan", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code


def test_the_command_runs_the_largest_micro_batch_and_prints_one_object(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = lab.write(lab.config("a", [lab.stage(train=ALL, batch="16 examples")], model=lab.model(lora=None)))
    assert enter(monkeypatch, config, "--json") in (0, None)
    told = json.loads(capsys.readouterr().out)
    (stage,) = told["stages"]
    assert told["ok"]
    assert stage["fits"]
    assert stage["steps_read"] == stage["steps"] == 4
    assert stage["measured_seconds"] > 0
    # A model of half a megabyte: it can only be seen that something was measured, and is of the libraries' size.
    assert 0 < stage["measured_peak"] < 2**30
    assert sum(stage["memory"].values()) == stage["foretold_peak"]
    assert not (lab.folder / "a").exists()


def test_the_command_fails_where_it_does_not_fit_or_the_machine_is_not_known(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = lab.write(lab.config("a"))
    assert enter(monkeypatch, config, "--gpus", "8xA100-80G") in (0, None)
    told = capsys.readouterr().out
    assert "on 8 x A100-80G" in told
    assert "measured       nothing: it is for another machine" in told
    assert enter(monkeypatch, config, "--gpus", "3xFOO") == 2
    assert "no GPU 'FOO' is known" in capsys.readouterr().err
    monkeypatch.setattr(planning, "this_machine", lambda: replace(SMALL, memory=1000))
    assert enter(monkeypatch, config, "--dry") == 1
    assert "it does not fit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("code", "said", "why"),
    [(-9, "", "it was tried, and ran out of memory"), (1, "ValueError: odd", "failed (1): ValueError: odd")],
)
def test_a_trial_that_fails_is_told(lab: Lab, monkeypatch: pytest.MonkeyPatch, code: int, said: str, why: str) -> None:
    monkeypatch.setattr(planning, "this_machine", lambda: replace(SMALL, measured=True))
    done = subprocess.CompletedProcess[str]((), code, "", said)
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: done)
    (stage,) = plan(lab.run("a")).stages
    assert stage.trial is None
    assert why in stage.untried
    assert stage.fits == (code == 1)
