import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import GPTJConfig, GPTJForCausalLM

from mmsft.cli import main
from mmsft.data import collate, encoding, pack, tree
from mmsft.data.chat import ChatEncoder
from mmsft.data.loader import StepData
from mmsft.errors import DataError
from mmsft.model import weights
from mmsft.model.fusion import MultimodalModel
from mmsft.model.tower import Tower
from mmsft.objectives import Loss, sft
from mmsft.run import Run, counts, subject
from mmsft.run.doctor import SUSPECTS, Report, doctor
from mmsft.run.invariance import Check, step_of
from mmsft.train import checkpoint, loop
from mmsft.train.loop import Trainer
from mmsft.types import Batch, BatchTargets, Encoded, Pack
from tests.data.conftest import byte_level
from tests.makers import Lab, row, write_rows
from tests.model.seq2seq import FAMILIES, folder

Patch = pytest.MonkeyPatch

BOTH: dict[str, Any] = {"towers.image.adapter": {"lr": 1e-2}, "decoder.lora": {"lr": 1e-2}}
"""A projector and LoRA learn."""


def with_media(lab: Lab, **changes: Any) -> Run:
    return lab.run("a", [lab.stage(train=BOTH)], **changes)


def text_only(lab: Lab, **changes: Any) -> Run:
    """A run without towers, on rows without media, in which the whole decoder learns."""
    write_rows(lab.folder / "text.jsonl", [row(number) for number in range(20)])
    stage = lab.stage("sft", recipe=lab.recipe("text.jsonl"), train={"decoder": {"lr": 1e-3}})
    return lab.run("text", [stage], model=lab.text_model(), **changes)


def failing(report: Report) -> list[str]:
    return [proof.name for proof in report.failed]


def skipped(report: Report) -> set[str]:
    return {proof.name for proof in report.proofs if proof.skipped}


# What is sound


def test_a_sound_run_with_media_passes_every_proof(lab: Lab) -> None:
    report = doctor(with_media(lab, precision="bf16"))
    assert report.failed == []
    assert skipped(report) == set()
    assert [proof.name for proof in report.proofs] == list(SUSPECTS)
    assert all(check.ok for proof in report.proofs for check in proof.checks)
    assert not (lab.folder / "a").exists()


def test_a_sound_run_on_text_passes(lab: Lab) -> None:
    report = doctor(text_only(lab))
    assert (report.failed, skipped(report)) == ([], {"towers", "autocast"})


def test_a_family_that_takes_no_packs_is_examined_in_padded_threads(lab: Lab) -> None:
    config = GPTJConfig(vocab_size=len(byte_level().hf), n_embd=16, n_layer=2, n_head=2, rotary_dim=4, n_positions=256)
    torch.manual_seed(0)
    GPTJForCausalLM(config).save_pretrained(lab.folder / "decoder")
    report = doctor(with_media(lab))
    assert (report.failed, skipped(report)) == ([], {"packing", "autocast"})
    assert "threads are padded" in report.notes[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_encoder_decoders_pass(lab: Lab, family: str) -> None:
    folder(lab.folder / "decoder", family)
    stage = lab.stage(recipe=lab.recipe(template="plain"), train={"decoder": {"lr": 1e-3}})
    report = doctor(lab.run("a", [stage], model=lab.model(lora=None)))
    assert (report.failed, skipped(report)) == ([], {"packing", "left padding", "autocast"})


def test_a_decoder_held_in_bf16_has_bounds_of_its_own(lab: Lab) -> None:
    stage = lab.stage(train=BOTH)
    report = doctor(lab.run("a", [stage], precision="bf16", model=lab.model(dtype="bfloat16")))
    assert report.failed == []
    [packing] = [proof for proof in report.proofs if proof.name == "packing"]
    assert [(check.what, check.bound) for check in packing.checks] == [("loss", 5e-2), ("gradient norm", 3e-1)]
    assert "set model.decoder.dtype=float32" in report.notes[0]


@pytest.mark.parametrize("learn", ["completion", "all", "span"])
@pytest.mark.parametrize("template", ["chatml", "vicuna", "alpaca", "hash", "plain"])
def test_targets_are_found_right_however_they_are_learned(lab: Lab, learn: str, template: str) -> None:
    say = "Red, I think.\n\nOr so.<answer> It is red " if learn == "span" else "  It is red\n\nor blue "
    turns = [
        {"from": who, "value": text} for who, text in (("human", "A?"), ("gpt", say), ("human", "B?"), ("gpt", say))
    ]
    write_rows(lab.folder / "text.jsonl", [{"conversations": turns}, {"conversations": turns[:2]}] * 2)
    stage = lab.stage(
        recipe=lab.recipe("text.jsonl", learn=learn, template=template, length=400), micro_batch="400 tokens"
    )
    run = lab.run("a", [stage | {"train": {"decoder": {"lr": 1e-3}}}], model=lab.text_model())
    [mixture] = [run.mixture(run.config.stages[0].recipe)]
    conversations = [mixture.conversation(pair) for pair in mixture.train]
    work = run.encoding(run.config.stages[0])
    [batch] = replace(work, micro_tokens=4000).batches([work.encoder.encode(one) for one in conversations], {})
    checks = list(counts.targets(work.encoder, conversations, {"a pack": batch}))
    assert len(checks) >= 3
    assert all(check.ok and check.reference > 0 for check in checks), [check.text() for check in checks]


def test_rows_that_the_recipe_joins_are_examined_joined(lab: Lab) -> None:
    pictures = [row(number, f"images/{colour}.png") for number, colour in enumerate(["red", "red", "red", "blue"])]
    write_rows(lab.folder / "rows.jsonl", pictures)
    report = doctor(lab.run("a", [lab.stage(recipe=lab.recipe(join="shared_prefix"), train=BOTH)]))
    assert report.failed == []


def test_stages_that_differ_in_nothing_are_examined_once(lab: Lab) -> None:
    report = doctor(
        lab.run("a", [lab.stage("one"), lab.stage("two", duration="9 steps"), lab.stage("three", train=BOTH)])
    )
    assert list(dict.fromkeys(proof.stage for proof in report.proofs)) == ["one", "three"]
    assert "stage two: its rows and what learns are those of stage one" in report.notes


# What is not: each test breaks the engine in one place


def test_positions_that_go_on_over_a_branch_point(lab: Lab, monkeypatch: Patch) -> None:
    real = tree._flat

    def on(*args: Any) -> Encoded:
        joined = real(*args)
        return replace(joined, positions=np.arange(len(joined)))

    monkeypatch.setattr(tree, "_flat", on)
    rows = [row(number, "images/red.png") for number in range(4)]
    write_rows(lab.folder / "rows.jsonl", rows)
    report = doctor(lab.run("a", [lab.stage(recipe=lab.recipe(join="shared_prefix"), train=BOTH)]))
    assert failing(report)[0] == "positions"
    assert "trees" in failing(report)


def test_positions_that_begin_at_1(lab: Lab, monkeypatch: Patch) -> None:
    real = collate._batch

    def shifted(*args: Any) -> Batch:
        batch = real(*args)
        return replace(batch, positions=batch.positions + 1)

    monkeypatch.setattr(collate, "_batch", shifted)
    assert failing(doctor(text_only(lab)))[0] == "positions"


def test_a_model_that_is_not_told_the_positions_in_a_pack(lab: Lab, monkeypatch: Patch) -> None:
    real = MultimodalModel._inputs

    def counting_on(self: MultimodalModel, batch: Batch) -> dict[str, Any]:
        inputs = real(self, batch)
        if batch.pack:
            inputs["position_ids"] = torch.arange(batch.input_ids.shape[1])[None] ** 2 // 64
        return inputs

    monkeypatch.setattr(MultimodalModel, "_inputs", counting_on)
    assert failing(doctor(text_only(lab)))[0] == "packing"


def seeing_to(monkeypatch: Patch, until: Callable[[Pack], Tensor]) -> None:
    """Has the attention of packs see tokens for longer."""
    real = MultimodalModel._inputs

    def changed(self: MultimodalModel, batch: Batch) -> dict[str, Any]:
        pack = batch.pack
        return real(self, replace(batch, pack=Pack(pack.segments, until(pack))) if pack else batch)

    monkeypatch.setattr(MultimodalModel, "_inputs", changed)


def test_a_tree_that_sees_its_neighbour(lab: Lab, monkeypatch: Patch) -> None:
    seeing_to(monkeypatch, lambda pack: torch.full_like(pack.until, len(pack.until)))
    assert failing(doctor(text_only(lab)))[0] == "packing"


def test_a_branch_that_sees_its_neighbour(lab: Lab, monkeypatch: Patch) -> None:
    def siblings_too(pack: Pack) -> Tensor:
        until = pack.until.clone()
        for segment in pack.segments:
            if segment.parent >= 0:
                until[segment.start : segment.end] = pack.until[pack.segments[segment.parent].start]
        return until

    seeing_to(monkeypatch, siblings_too)
    assert failing(doctor(text_only(lab))) == ["trees"]


def test_a_mean_of_means_in_the_objective(lab: Lab, monkeypatch: Patch) -> None:
    def mean(model: nn.Module, batch: Batch, sources: int) -> Loss:
        loss = sft(model, batch, sources)
        return Loss(loss.sum / loss.count, loss.count / loss.count, loss.by_source)

    monkeypatch.setattr(subject, "sft", mean)
    report = doctor(text_only(lab))
    assert failing(report)[0] == "normalisation"
    assert "accumulation" in failing(report)


def test_a_mean_of_means_in_the_loop(lab: Lab, monkeypatch: Patch) -> None:
    real = loop.backward

    def averaged(trainer: Trainer, item: StepData) -> Any:
        totals = [real(trainer, replace(step_of([batch]), used=0))[1] for batch in item.micro]
        for parameter in trainer.model.parameters():
            if parameter.grad is not None:
                parameter.grad /= len(item.micro)
        return None, torch.stack(totals).sum(0)

    monkeypatch.setattr("mmsft.run.invariance.backward", averaged)
    report = doctor(text_only(lab))
    assert failing(report)[0] == "normalisation"


def test_a_tower_that_runs_once_for_each_appearance_of_a_medium(lab: Lab, monkeypatch: Patch) -> None:
    real = Tower.forward

    def twice(self: Tower, tensors: Any, grid: Any) -> Tensor:
        real(self, tensors, grid)
        return real(self, tensors, grid)

    monkeypatch.setattr(Tower, "forward", twice)
    assert failing(doctor(with_media(lab))) == ["towers"]


def test_a_tower_that_mixes_up_its_media(lab: Lab, monkeypatch: Patch) -> None:
    real = Tower.forward
    monkeypatch.setattr(Tower, "forward", lambda self, tensors, grid: real(self, tensors, grid).flip(0))
    assert failing(doctor(with_media(lab)))[0] == "towers"


def test_media_that_a_batch_puts_into_the_slots_of_others(lab: Lab, monkeypatch: Patch) -> None:
    real = collate._media

    def mixed_up(*args: Any) -> Any:
        return {name: replace(media, slots=media.slots.flip(0)) for name, media in real(*args).items()}

    monkeypatch.setattr(collate, "_media", mixed_up)
    assert failing(doctor(with_media(lab)))[0] == "packing"


def encoded_as(monkeypatch: Patch, change: Callable[[Encoded], Encoded]) -> None:
    """Changes what every conversation becomes."""
    real = ChatEncoder.encode_all

    def changed(self: ChatEncoder, *args: Any) -> list[Encoded | DataError]:
        return [change(row) if isinstance(row, Encoded) else row for row in real(self, *args)]

    monkeypatch.setattr(ChatEncoder, "encode_all", changed)


def test_targets_that_stand_at_their_own_tokens(lab: Lab, monkeypatch: Patch) -> None:
    encoded_as(monkeypatch, lambda row: replace(row, targets=replace(row.targets, position=row.targets.position + 1)))
    assert failing(doctor(text_only(lab)))[0] == "targets"


@pytest.mark.parametrize("by", [-1, 1])
def test_targets_that_are_those_of_the_position_beside(lab: Lab, monkeypatch: Patch, by: int) -> None:
    def beside(row: Encoded) -> Encoded:
        at = np.minimum(row.targets.position + by, len(row) - 2)
        return replace(row, targets=replace(row.targets, position=at, token=row.input_ids[at + 1]))

    encoded_as(monkeypatch, beside)
    [proof] = doctor(text_only(lab)).failed
    assert proof.name == "targets"
    assert all(check.what.startswith("replies, and learned") for check in proof.checks if not check.ok)


def test_targets_that_a_batch_puts_one_too_far(lab: Lab, monkeypatch: Patch) -> None:
    real = collate._targets

    def late(*args: Any) -> BatchTargets:
        found = real(*args)
        return replace(found, at=found.at + 1)

    monkeypatch.setattr(collate, "_targets", late)
    assert failing(doctor(text_only(lab)))[0] == "targets"


def test_padding_that_counts_as_a_target(lab: Lab, monkeypatch: Patch) -> None:
    real = collate.collate

    def counted(*args: Any, **kwargs: Any) -> Batch:
        batch = real(*args, **kwargs)
        padding = (~batch.mask).flatten().nonzero().flatten()
        found = batch.targets
        targets = BatchTargets(
            torch.cat([found.at, padding]),
            torch.cat([found.token, torch.zeros_like(padding)]),
            torch.cat([found.weight, torch.ones(len(padding))]),
            torch.cat([found.source, torch.zeros_like(padding)]),
        )
        return replace(batch, targets=targets)

    monkeypatch.setattr("mmsft.data.encoding.collate", counted)
    assert failing(doctor(text_only(lab)))[:2] == ["targets", "padding"]


def test_padding_that_is_attended_to(lab: Lab, monkeypatch: Patch) -> None:
    real = MultimodalModel._inputs

    def blind(self: MultimodalModel, batch: Batch) -> dict[str, Any]:
        inputs = real(self, batch)
        return inputs | ({} if batch.pack else {"attention_mask": torch.ones_like(batch.mask).long()})

    monkeypatch.setattr(MultimodalModel, "_inputs", blind)
    assert failing(doctor(text_only(lab))) == ["left padding"]  # on the right none is before what is learned


def test_a_row_without_media_that_drops_those_of_its_batch(lab: Lab, monkeypatch: Patch) -> None:
    real = MultimodalModel.embed

    def dropping(self: MultimodalModel, batch: Batch) -> Tensor:
        seen = {use.row for media in batch.media.values() for use in media.uses}
        return real(self, batch if len(seen) == len(batch.ids) else replace(batch, media={}))

    monkeypatch.setattr(MultimodalModel, "embed", dropping)
    report = doctor(with_media(lab))
    assert failing(report)[-1] == "text row"
    assert set(failing(report)) <= {"towers", "text row"}


def test_a_micro_batch_whose_gradient_is_lost(lab: Lab, monkeypatch: Patch) -> None:
    real = loop.backward

    def forgetting(trainer: Trainer, item: StepData) -> Any:
        done = real(trainer, item)
        if 2 < len(item.micro) < 12:
            for parameter in trainer.model.parameters():
                if parameter.grad is not None:
                    parameter.grad *= 0.99
        return done

    monkeypatch.setattr("mmsft.run.invariance.backward", forgetting)
    assert "accumulation" in failing(doctor(text_only(lab)))


def test_rows_that_no_process_takes(lab: Lab, monkeypatch: Patch) -> None:
    real = pack.bins

    def fewer(sizes: Any, capacity: int, shares: int = 1) -> list[list[int]]:
        found = real(sizes, capacity, shares)
        return [[*items[1:]] if shares > 1 else items for items in found]

    monkeypatch.setattr(encoding, "bins", fewer)
    assert failing(doctor(text_only(lab))) == ["ranks"]


def test_lora_that_is_not_saved(lab: Lab, monkeypatch: Patch) -> None:
    real = weights.save_weights

    def without(model: nn.Module, path: Path, names: set[str]) -> None:
        real(model, path, {name for name in names if "lora" not in name})

    monkeypatch.setattr(checkpoint, "save_weights", without)
    assert failing(doctor(with_media(lab))) == ["saved and loaded"]


def test_weights_that_are_not_restored(lab: Lab, monkeypatch: Patch) -> None:
    monkeypatch.setattr(checkpoint, "restore_weights", lambda path, model: set())
    assert failing(doctor(text_only(lab))) == ["saved and loaded"]


def test_a_checkpoint_that_cannot_be_written_fails_its_proof_and_no_other(lab: Lab, monkeypatch: Patch) -> None:
    def full(*args: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint, "save_weights", full)
    [proof] = doctor(text_only(lab)).failed
    assert proof.name == "saved and loaded"
    assert "no space left" in proof.text()


# What is said


def test_a_failed_proof_says_the_numbers_and_what_is_suspect(lab: Lab, monkeypatch: Patch) -> None:
    seeing_to(monkeypatch, lambda pack: torch.full_like(pack.until, len(pack.until)))
    report = doctor(text_only(lab))
    first = report.failed[0].text()
    assert re.search(r"FAIL  packing .*\n +loss [\d.]+ and [\d.]+, apart [\d.e-]+ > 1e-05\n", first)
    assert SUSPECTS["packing"] in first
    assert f"begin with packing, stage sft: {SUSPECTS['packing']}" in report.verdict()


def test_the_command_prints_one_json_object_or_lines(
    lab: Lab, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    text_only(lab)

    def command(*options: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["mmsft", "doctor", str(lab.folder / "text.yaml"), *options])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), capsys.readouterr().out

    code, out = command("--json")
    told = json.loads(out)
    assert (code, told["ok"], [proof["name"] for proof in told["proofs"]]) == (0, True, list(SUSPECTS))
    assert all(set(check) >= {"reference", "variant", "difference", "bound"} for check in told["proofs"][0]["checks"])

    code, out = command()
    assert (code, out.count("  pass  "), out.count("  skip  ")) == (0, len(SUSPECTS) - 2, 2)
    assert re.search(r"^12 proofs hold, in \d+ s$", out.splitlines()[-1])

    monkeypatch.setattr(checkpoint, "restore_weights", lambda path, model: set())
    code, out = command()
    assert (code, out.count("  FAIL  saved and loaded")) == (1, 1)
    assert command("stages.sft.train.decoder.lr=x")[0] == 2


def test_numbers_that_are_not_finite_fail() -> None:
    assert not Check("loss", 1.0, float("nan"), float("nan"), 1e-5).ok
    assert not Check("loss", 1.0, float("inf"), float("inf"), 1e-5).ok


def test_rows_of_which_none_can_be_learned_from_are_an_error(lab: Lab) -> None:
    write_rows(lab.folder / "rows.jsonl", [{"a": 1}] * 3)
    with pytest.raises(
        DataError, match=r"stage align: none of its first 3 rows can be learned from; see `mmsft check`"
    ):
        doctor(lab.run("a"))
