import json
import math
import resource
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from safetensors import safe_open

from mmsft.errors import CheckpointError, ConfigError, DataError, Diverged
from mmsft.eval.loss import HeldOutLoss
from mmsft.model.names import named_parameters
from mmsft.run import execute, load_run, open_run
from mmsft.run.open import export_run
from mmsft.run.summary import summary
from tests.makers import Lab, finish, lines, losses, picture, row, saved, tensors_of, weights, write_rows


def test_every_row_ends_in_the_ledger_with_its_reason(lab: Lab) -> None:
    broken: dict[str, Any] = {
        "corrupt": {**row(1), "image": "images/corrupt.png"},
        "cut": {**row(2), "image": "images/cut.png"},
        "outside": {**row(3), "image": "../../secret.png"},
        "sound": {"messages": [{"role": "user", "content": [{"type": "audio", "audio": "a.wav"}]}]},
        "long": {"conversations": [{"from": "human", "value": "x" * 300}, {"from": "gpt", "value": "y"}]},
        "silent": {"conversations": [{"from": "human", "value": "Hello?"}, {"from": "gpt", "value": "a", "weight": 0}]},
        "empty": {"conversations": [{"from": "human", "value": "Hello?"}, {"from": "gpt", "value": " "}]},
    }
    for name in ("corrupt", "cut", "outside"):
        broken[name]["conversations"][0]["value"] = "<image> What?"
    (lab.folder / "images" / "corrupt.png").write_bytes(b"not a picture")
    cut = picture(lab.folder / "images" / "cut.png", "red", side=500)
    cut.write_bytes(cut.read_bytes()[:-500])
    file = write_rows(lab.folder / "rows.jsonl", [*lab.rows(6), *broken.values()])
    file.write_bytes(file.read_bytes() + b'{"kind": "\xff\xfe"}\n{"conversations": [{"from": "hum')
    run = lab.run("a", [lab.stage(recipe=lab.recipe(budget=0.9), duration="2 epochs", batch="6 examples")])
    finish(run)
    entries = lines(run.folder / "ledger.jsonl")
    fates = {(entry["row"], entry["fate"]) for entry in entries}
    names = {name: f"rows.jsonl:{number}" for number, name in enumerate(broken, 7)}
    dropped = {(names["long"], "dropped"), (names["silent"], "dropped")}
    failed = {(names[name], "failed") for name in ("corrupt", "cut", "outside", "sound", "empty")}
    assert fates == dropped | failed | {("rows.jsonl:14", "failed"), ("rows.jsonl:15", "failed")}
    assert len(entries) == 2 * len(fates)
    reasons = {entry["row"]: entry["reason"] for entry in entries}
    for name, words in {
        "corrupt": "not a picture", "cut": "cut.png", "outside": "secret.png", "long": "length is 150",
        "silent": "nothing to learn", "empty": "is empty",
    }.items():  # fmt: skip
        assert words in reasons[names[name]]
    assert saved(run.folder)[-1].ledger == {"rows": {"used": 12, "dropped": 4, "failed": 14}}


def test_media_without_a_tower_is_lost_and_says_which_tower(lab: Lab) -> None:
    recipe = lab.recipe(budget=0.5)
    run = lab.run("a", [lab.stage(recipe=recipe, train={"decoder": {"lr": 1e-3}})], model=lab.text_model())
    with pytest.raises(DataError, match="no image tower"):
        finish(run)


def test_a_run_stops_beyond_its_budget_and_keeps_its_ledger(lab: Lab) -> None:
    write_rows(lab.folder / "rows.jsonl", [*lab.rows(10), {"a": 1}, {"b": 2}])
    run = lab.run("a", [lab.stage(recipe=lab.recipe(budget=0.1), duration="1 epoch")])
    with pytest.raises(DataError, match=r"(?s)2 of \d+ rows seen are lost.*ledger\.jsonl"):
        finish(run)
    assert {entry["row"] for entry in lines(run.folder / "ledger.jsonl")} == {"rows.jsonl:11", "rows.jsonl:12"}


@pytest.mark.parametrize("batch", ["4 examples", "100 tokens"])
def test_a_recipe_of_which_no_row_can_be_read_ends_in_an_error(lab: Lab, batch: str) -> None:
    write_rows(lab.folder / "rows.jsonl", [{"a": number} for number in range(12)])
    train = {"decoder": {"lr": 1e-3}}
    run = lab.run("a", [lab.stage(recipe=lab.recipe(budget=1.0), batch=batch, train=train)], model=lab.text_model())
    with pytest.raises(DataError, match=r"nothing is learned|no row of the recipe can be encoded"):
        finish(run)


def test_a_tower_that_learns_needs_media(lab: Lab) -> None:
    write_rows(lab.folder / "rows.jsonl", [row(number) for number in range(8)])
    with pytest.raises(ConfigError, match="image tower learns, but none of the recipe's 8 rows has image media"):
        finish(lab.run("a"))


def test_frozen_weights_stay_to_the_bit(lab: Lab) -> None:
    run = lab.run("a", [lab.stage(train={"decoder.lora": {"lr": 0.1}})])
    before = {name: p.detach().clone() for name, p in named_parameters(run.model()).items()}
    *_, (_, _, assistant) = execute(run)
    after = named_parameters(assistant.model)
    moved = {name for name, value in before.items() if not torch.equal(value, after[name].detach())}
    assert moved
    assert all(name.startswith("decoder.lora.") for name in moved)
    assert not any(name.startswith("decoder.lora.") and "vision" in name for name in after)


def test_a_checkpoint_holds_what_differs_from_the_config_and_a_run_opens_with_it(lab: Lab) -> None:
    stages = [lab.stage(), lab.stage("two", train={"decoder.lora": {"lr": 0.1}})]
    run = lab.run("a", stages)
    *_, (_, _, assistant) = execute(run)
    trained = named_parameters(assistant.model)
    assert {name.split(".")[1] for name in tensors_of(run.folder)} == {"image", "lora"}
    opened = named_parameters(open_run(run.folder).model)
    assert all(torch.equal(parameter, opened[name]) for name, parameter in trained.items())


def test_new_tokens_learn_with_lora_and_come_back(lab: Lab) -> None:
    write_rows(lab.folder / "rows.jsonl", [row(number) for number in range(8)])
    template = lab.folder / "loc.jinja"
    template.write_text(
        "{% for message in messages %}<loc>{{ message.role }}: {{ message.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<loc>assistant: {% endif %}"
    )
    model = lab.text_model(lora={"r": 2}, new_tokens=["<loc>"])
    train = {"decoder.lora": {"lr": 1e-2}, "decoder.new_tokens": {"lr": 1e-1}}
    run = lab.run("a", [lab.stage(train=train, recipe=lab.recipe(template=str(template)))], model=model)
    fresh = named_parameters(run.model())["decoder.new_tokens.input"].detach().clone()
    finish(run)
    opened = named_parameters(open_run(run.folder).model)["decoder.new_tokens.input"]
    assert torch.equal(opened, tensors_of(run.folder)["decoder.new_tokens.input"])
    assert not torch.equal(opened, fresh)


def test_a_finished_run_has_nothing_left_to_do(lab: Lab) -> None:
    run = lab.run("a")
    finish(run)
    log = (run.folder / "log.jsonl").read_bytes()
    assert finish(run) == []
    assert (run.folder / "log.jsonl").read_bytes() == log


def test_a_checkpoint_of_another_config_names_what_differs(lab: Lab) -> None:
    finish(lab.run("a"))
    changed = lab.write(lab.config("a", [lab.stage(duration="9 steps", clip=2.0)], seed=3, workers=1))
    with pytest.raises(CheckpointError) as caught:
        finish(load_run(changed))
    message = str(caught.value)
    clip, duration = "stages.align.clip: 1.0 → 2.0", "stages.align.duration: '4 steps' → '9 steps'"
    for line in ("seed: 0 → 3", clip, duration, "init_from"):
        assert line in message
    assert "workers" not in message


def test_init_from_starts_where_another_run_ended(lab: Lab) -> None:
    first = lab.run("first")
    finish(first)
    stage = lab.stage("two", train={"decoder.lora": {"lr": 1e-2}}, init_from=str(first.folder))
    second = lab.run("second", [stage])
    finish(second)
    adapter = {name: value for name, value in weights(first.folder).items() if "adapter" in name}
    assert adapter.items() <= weights(second.folder).items()


def test_init_from_a_folder_without_a_checkpoint_is_refused(lab: Lab) -> None:
    run = lab.run("a", [lab.stage(init_from=str(lab.folder / "images"))])
    with pytest.raises(ConfigError, match=r"init_from: .*images' has no complete checkpoint"):
        finish(run)


@pytest.mark.parametrize("lr", [1e-2, 1e-30])
def test_the_best_checkpoint_is_kept_and_patience_stops_a_stage(lab: Lab, lr: float) -> None:
    evaluate = {"every": "2 steps", "patience": 2}
    stage = lab.stage(
        recipe=lab.recipe(validation={"fraction": 0.3}),
        duration="40 steps",
        evaluate=evaluate,
        train={"towers.image.adapter": {"lr": lr}},
        schedule={"decay": "constant"},
    )
    run = lab.run("a", [stage], save={"every": "2 steps", "keep": 1})
    done = finish(run)
    measured = {
        line["step"]: line["held_out_loss"] for line in lines(run.folder / "log.jsonl") if "held_out_loss" in line
    }
    states = saved(run.folder)
    lowest = min((loss, step) for step, loss in measured.items() if step)[1]
    assert states[-1].best_at == lowest
    assert states[-1].best == measured[lowest]
    assert states[-1].done
    assert [state.step for state in states] == sorted({lowest, states[-1].step})
    if lr < 1e-9:  # nothing changes, so the first evaluation stays the best
        assert (lowest, len(done)) == (2, 6)
    open_run(run.folder, "best")


def test_a_loss_that_is_not_finite_names_rows_and_saves_nothing_more(lab: Lab) -> None:
    stage = lab.stage(train={"towers.image.adapter": {"lr": 1e30}}, clip=None, duration="20 steps")
    run = lab.run("a", [stage], save={"every": "1 step", "keep": 9})
    with pytest.raises(Diverged, match=r"step \d+: loss .*rows\.jsonl:\d+"):
        finish(run)
    for state in saved(run.folder):
        assert state.step <= len(losses(run.folder))
    for value in tensors_of(run.folder).values() if saved(run.folder) else ():
        assert torch.isfinite(value).all()


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """Lets no file grow beyond a size: a true short write, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, old)


@pytest.mark.parametrize(("size", "place"), [(3500, "00-align-0000004"), (900, r"log\.jsonl")])
def test_a_disk_that_fills_up_leaves_the_last_checkpoint_and_the_run_goes_on(lab: Lab, size: int, place: str) -> None:
    calm = lab.run("calm", [lab.stage(duration="6 steps")])
    finish(calm)
    run = lab.run("full", [lab.stage(duration="6 steps")])
    events = execute(run)
    for _ in range(3):
        next(events)
    with disk_of(size), pytest.raises(CheckpointError, match=rf"(?s){place}.*run the same command to go on"):
        list(events)
    assert [state.step for state in saved(run.folder)] == [2]
    finish(run)
    assert losses(run.folder) == losses(calm.folder)
    assert weights(run.folder) == weights(calm.folder)


def test_bf16_computes_under_autocast_and_keeps_weights_in_fp32(lab: Lab) -> None:
    exact, rough = lab.run("exact"), lab.run("rough", precision="bf16")
    finish(exact)
    finish(rough)
    pairs = list(zip(losses(exact.folder), losses(rough.folder), strict=True))
    assert all(ours[2] != theirs[2] for ours, theirs in pairs)
    for (*_, ours), (*_, theirs) in pairs:
        assert theirs == pytest.approx(ours, rel=0.02)  # bf16 has 8 bits: 2⁻⁸ a rounding
    assert all(value.dtype == torch.float32 for value in tensors_of(rough.folder).values())


@pytest.mark.parametrize("which", ["selective", "full"])
def test_activation_checkpointing_changes_nothing(lab: Lab, which: str) -> None:
    train = {"decoder.lora": {"lr": 1e-3}, "decoder": {"lr": 1e-3}}
    plain = lab.run("plain", [lab.stage(train=train)])
    checkpointed = lab.run("saving", [lab.stage(train=train, activation_checkpointing=which)])
    finish(plain)
    *_, (_, _, assistant) = execute(checkpointed)
    assert assistant.model.decoder.is_gradient_checkpointing
    assert losses(plain.folder) == losses(checkpointed.folder)
    assert weights(plain.folder) == weights(checkpointed.folder)


def test_text_only_goes_through_the_same_loop(lab: Lab) -> None:
    write_rows(lab.folder / "rows.jsonl", [row(number) for number in range(12)])
    stage = lab.stage(train={"decoder": {"lr": 1e-2}}, duration="3 epochs", batch="200 tokens")
    run = lab.run("a", [stage], model=lab.text_model())
    done = finish(run)
    assert done[-1].loss < done[0].loss
    assert saved(run.folder)[-1].ledger == {"rows": {"used": 36}}


def test_stages_on_one_recipe_see_it_in_different_orders(lab: Lab) -> None:
    run = lab.run("a", [lab.stage(duration="1 epoch"), lab.stage("two", duration="1 epoch")])
    finish(run)
    orders = [line["order"] for line in lines(run.folder / "log.jsonl") if "order" in line]
    assert orders[5] != orders[11]


def test_describe_tells_what_learns_and_leaves_the_model_as_it_was(lab: Lab) -> None:
    stages = [lab.stage(), lab.stage("two", train={"decoder": {"lr": 1e-5}, "towers": {"lr": 1e-3}})]
    run = lab.run("a", stages, model=lab.model(lora=None))
    model = run.model()
    names = named_parameters(model)
    before = {name: parameter.requires_grad for name, parameter in names.items()}
    first, second = run.describe(model).split("\nstage ")[1:]
    total = {
        part: sum(p.numel() for name, p in names.items() if name.startswith(part)) for part in ("towers", "decoder")
    }
    adapter = sum(p.numel() for name, p in names.items() if ".adapter." in name)
    assert f"learns  {'towers.image.adapter':<32} {adapter:>13,} parameters at 0.01" in first
    assert f"frozen  {'towers.image.encoder':<32} {total['towers'] - adapter:>13,}" in first
    assert f"learns  {'decoder':<32} {total['decoder']:>13,}" in second
    assert "frozen" not in second
    assert {name: parameter.requires_grad for name, parameter in names.items()} == before


def test_tensorboard_gets_every_step_of_every_stage(lab: Lab) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = lab.run("a", [lab.stage(), lab.stage("two")], loggers=["tensorboard"])
    finish(run)
    [file] = {path.parent for path in run.folder.rglob("events.*")}
    events = reader.EventAccumulator(str(file))
    events.Reload()
    assert [event.step for event in events.Scalars("align/loss")] == [1, 2, 3, 4]
    assert [event.step for event in events.Scalars("two/loss")] == [5, 6, 7, 8]
    logged = [loss for _, _, loss in losses(run.folder)]
    assert [event.value for event in events.Scalars("two/loss")] == pytest.approx(logged[4:])


def test_wandb_gets_the_losses_and_writes_into_the_run_folder(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    (elsewhere := lab.folder / "elsewhere").mkdir()
    monkeypatch.chdir(elsewhere)
    run = lab.run("a", [lab.stage(duration="2 steps")], loggers=["wandb"])
    finish(run)
    [file] = run.folder.glob("wandb/offline-run-*/*.wandb")
    values = [json.dumps(loss).encode() for _, _, loss in losses(run.folder)]
    # A process of wandb's own writes the log, of messages in which values stand as JSON; it may still be at it.
    until = time.monotonic() + 60
    while not all(value in file.read_bytes() for value in (b"align/loss", *values)):
        assert time.monotonic() < until, file.read_bytes()
        time.sleep(0.1)
    assert list(elsewhere.iterdir()) == []


def test_a_logger_that_refuses_the_run_is_the_users_error(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    with pytest.raises(ConfigError, match=r"loggers: wandb: .*a#1.*; mend that, or leave the logger out"):
        finish(lab.run("a#1", loggers=["wandb"]))


@pytest.mark.parametrize(
    ("logger", "message"),
    [
        ("tensorbord", r"no logger 'tensorbord' \(did you mean 'tensorboard'\?\)"),
        ("dvclive", "dvclive isn't installed; pip install dvclive"),
        ("wandb", r"wandb isn't installed; pip install 'mmsft\[wandb\]'"),
    ],
)
def test_a_logger_that_cannot_be_opened_is_refused_before_training(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, logger: str, message: str
) -> None:
    monkeypatch.setattr("mmsft.parallel.get_available_trackers", list)
    run = lab.run("a", loggers=[logger])
    with pytest.raises(ConfigError, match=message):
        finish(run)
    assert not run.folder.exists()


def test_the_config_of_a_run_is_kept_and_starts_it_again(lab: Lab) -> None:
    run = lab.run("a")
    finish(run)
    again = load_run(run.folder)
    assert again.config == run.config
    assert finish(again) == []


def test_a_run_folder_that_cannot_be_made_is_the_users_error(lab: Lab) -> None:
    (lab.folder / "file").write_text("")
    with pytest.raises(ConfigError, match=r"out: the run folder .* can't be written"):
        finish(lab.run("file/run"))


def test_the_log_is_json_and_tells_what_a_step_was(lab: Lab) -> None:
    run = lab.run("a")
    finish(run)
    for line in (run.folder / "log.jsonl").read_text().splitlines():
        entry = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} isn't JSON"))
        if "loss" in entry:
            assert entry["loss"] == pytest.approx(entry["loss_by_source"]["rows"])
            numbers = {"stage", "step", "loss", "grad_norm", "targets", "tokens", "spared", "seconds"}
            assert set(entry) == numbers | {"name", "loss_by_source", "lr", "order"}


def test_a_held_out_loss_of_nothing_is_no_number_and_not_the_best(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(model: object, batches: Iterable[object], *rest: object) -> HeldOutLoss:
        return HeldOutLoss(math.nan if list(batches) else 0.0, {})

    monkeypatch.setattr("mmsft.run.stages.held_out_loss", nothing)
    stage = lab.stage(recipe=lab.recipe(validation={"fraction": 0.3}), evaluate={"every": "2 steps"})
    run = lab.run("a", [stage], loggers=["tensorboard"])
    finish(run)
    held_out = [line["held_out_loss"] for line in lines(run.folder / "log.jsonl") if "held_out_loss" in line]
    assert held_out == [None, None, None]
    assert (saved(run.folder)[-1].best, saved(run.folder)[-1].stale) == (None, 2)
    assert "held-out" not in summary(run)


def test_a_stage_that_learned_nothing_has_a_summary(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmsft.train.loop.Step.learned_nothing", True)
    run = lab.run("a")
    finish(run)
    assert losses(run.folder) == [(0, step, None) for step in (1, 2, 3, 4)]
    assert summary(run).startswith("align: 4 steps; nothing was learned")


@pytest.mark.parametrize(("dtype", "precision"), [("bfloat16", "bf16"), ("float16", "fp32")])
def test_what_is_fresh_learns_in_fp32_beside_a_decoder_in_low_precision(lab: Lab, dtype: str, precision: str) -> None:
    train = {part: {"lr": 1e-2} for part in ("towers.image.adapter", "decoder.lora", "decoder.new_tokens")}
    model = lab.model(dtype=dtype, new_tokens=["<spot>"])
    run = lab.run("a", [lab.stage(train=train)], model=model, precision=precision)
    finish(run)
    assert {str(tensor.dtype) for tensor in tensors_of(run.folder).values()} == {"torch.float32"}
    export_run(run.folder, run.folder / "hf", "last")
    with safe_open(run.folder / "hf" / "model.safetensors", framework="pt") as file:
        assert str(file.get_tensor("language_model.lm_head.weight").dtype) == f"torch.{dtype}"
    learns = lab.run("b", [lab.stage(train={"decoder.model": {"lr": 1e-2}})], model=lab.model(dtype=dtype))
    with pytest.raises(ConfigError, match=rf"model\.decoder\.dtype: {dtype}"):
        finish(learns)
