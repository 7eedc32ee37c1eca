import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import Gemma2Config, Gemma2ForCausalLM

from mmsft.data import collate, encoding, pack, tree
from mmsft.data.loader import StepData
from mmsft.model import fusion, weights
from mmsft.model.attention import Trees
from mmsft.model.fusion import MultimodalModel
from mmsft.model.tower import Tower
from mmsft.objectives import Loss, sft
from mmsft.run import subject
from mmsft.run.doctor import doctor
from mmsft.run.examination import SUSPECTS
from mmsft.run.invariance import step_of
from mmsft.train import checkpoint, loop
from mmsft.train.loop import Trainer
from mmsft.types import Batch, BatchTargets, Encoded, MediaGroup
from tests.data.conftest import byte_level
from tests.makers import Lab, row, write_rows
from tests.model.seq2seq import FAMILIES, folder
from tests.run.examined import (
    BOTH,
    Patch,
    encoded_as,
    failing,
    seeing_to,
    siblings_too,
    skipped,
    text_only,
    told,
    with_media,
)

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
    def counting_on(batch: Batch, inputs: dict[str, Any]) -> dict[str, Any]:
        if batch.pack:
            inputs["position_ids"] = torch.arange(batch.input_ids.shape[1])[None] ** 2 // 64
        return inputs

    told(monkeypatch, counting_on)
    assert failing(doctor(text_only(lab)))[0] == "packing"


def test_a_tree_that_sees_its_neighbour(lab: Lab, monkeypatch: Patch) -> None:
    seeing_to(monkeypatch, lambda pack: torch.full_like(pack.until, len(pack.until)))
    assert failing(doctor(text_only(lab)))[0] == "packing"


def test_a_branch_that_sees_its_neighbour(lab: Lab, monkeypatch: Patch) -> None:
    seeing_to(monkeypatch, siblings_too)
    assert failing(doctor(text_only(lab))) == ["trees"]


def test_a_branch_that_sees_its_neighbour_where_training_has_branches(lab: Lab, monkeypatch: Patch) -> None:
    seeing_to(monkeypatch, siblings_too)
    write_rows(lab.folder / "rows.jsonl", [row(number, "images/red.png") for number in range(4)])
    report = doctor(lab.run("a", [lab.stage(recipe=lab.recipe(join="shared_prefix"), train=BOTH)]))
    assert failing(report)[0] == "trees"


def test_branches_whose_positions_the_model_takes_for_one_more(lab: Lab, monkeypatch: Patch) -> None:
    def late(batch: Batch, inputs: dict[str, Any]) -> dict[str, Any]:
        positions = batch.positions.clone()
        for segment in batch.pack.segments if batch.pack else ():
            positions[0, segment.start : segment.end] += segment.parent >= 0
        return inputs | {"position_ids": positions}

    told(monkeypatch, late)
    assert failing(doctor(text_only(lab))) == ["trees"]


def test_positions_that_are_wrong_in_whatever_form(lab: Lab, monkeypatch: Patch) -> None:
    told(monkeypatch, lambda batch, inputs: inputs | {"position_ids": batch.positions + (batch.positions > 5).long()})
    assert failing(doctor(text_only(lab))) == ["logits"]


def test_a_cap_on_the_logits_that_is_dropped(lab: Lab, monkeypatch: Patch) -> None:
    monkeypatch.setattr(MultimodalModel, "find_head", lambda self: None)
    config = Gemma2Config(
        vocab_size=len(byte_level().hf),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        intermediate_size=32,
        final_logit_softcapping=0.5,
    )
    torch.manual_seed(0)
    Gemma2ForCausalLM(config).save_pretrained(lab.folder / "decoder")
    assert failing(doctor(text_only(lab))) == ["logits"]


def test_an_attention_that_forgets_what_it_is_asked_for(lab: Lab, monkeypatch: Patch) -> None:
    real = Trees.attend
    monkeypatch.setattr(Trees, "attend", lambda self, *args, **how: real(self, *args, **how | {"scale": 1.0}))
    report = doctor(text_only(lab))
    assert skipped(report) >= {"packing", "trees"}  # the probe has seen it, so that nothing is packed
    monkeypatch.setattr(fusion, "why_not_packed", lambda decoder: None)
    assert failing(doctor(text_only(lab)))[0] == "packing"


def test_a_mean_of_means_in_the_objective(lab: Lab, monkeypatch: Patch) -> None:
    def mean(model: nn.Module, batch: Batch, sources: int) -> Loss:
        loss = sft(model, batch, sources)
        return Loss(loss.sum / loss.count, loss.count / loss.count, loss.by_source)

    monkeypatch.setattr(subject, "sft", mean)
    report = doctor(text_only(lab))
    assert failing(report)[0] == "normalisation"
    assert "accumulation" in failing(report)


def test_weights_that_the_objective_ignores(lab: Lab, monkeypatch: Patch) -> None:
    def all_alike(model: nn.Module, batch: Batch, sources: int) -> Loss:
        targets = replace(batch.targets, weight=torch.ones_like(batch.targets.weight))
        return sft(model, replace(batch, targets=targets), sources)

    monkeypatch.setattr(subject, "sft", all_alike)
    assert failing(doctor(text_only(lab))) == ["normalisation"]


def test_weights_that_a_batch_ignores(lab: Lab, monkeypatch: Patch) -> None:
    real = collate._targets

    def all_alike(*args: Any) -> BatchTargets:
        found = real(*args)
        return replace(found, weight=torch.ones_like(found.weight))

    monkeypatch.setattr(collate, "_targets", all_alike)
    assert failing(doctor(text_only(lab))) == ["targets"]


def test_weights_that_encoding_ignores(lab: Lab, monkeypatch: Patch) -> None:
    encoded_as(
        monkeypatch,
        lambda row: replace(row, targets=replace(row.targets, weight=np.ones_like(row.targets.weight))),
    )
    assert failing(doctor(text_only(lab))) == ["targets"]


def test_a_reply_that_meets_the_prompt_of_another(lab: Lab, monkeypatch: Patch) -> None:
    real = collate._two_sided

    def crossed(*args: Any) -> Batch:
        batch = real(*args)
        assert batch.prompts is not None
        return replace(batch, prompts=replace(batch.prompts, of=batch.prompts.of.flip(0)))

    monkeypatch.setattr(collate, "_two_sided", crossed)
    folder(lab.folder / "decoder", FAMILIES[0])
    stage = lab.stage(recipe=lab.recipe(template="plain"), train={"decoder": {"lr": 1e-3}})
    assert failing(doctor(lab.run("a", [stage], model=lab.model(lora=None))))[0] == "trees"


def test_a_mean_of_means_in_the_loop(lab: Lab, monkeypatch: Patch) -> None:
    real = loop.backward

    def averaged(trainer: Trainer, item: StepData) -> Any:
        totals = [real(trainer, step_of([batch]))[1] for batch in item.micro]
        for parameter in trainer.model.parameters():
            if parameter.grad is not None:
                parameter.grad /= len(item.micro)
        return None, torch.stack(totals).sum(0)

    monkeypatch.setattr("mmsft.run.invariance.backward", averaged)
    report = doctor(text_only(lab))
    assert failing(report)[0] == "normalisation"


def test_a_tower_that_runs_once_for_each_appearance_of_a_medium(lab: Lab, monkeypatch: Patch) -> None:
    real = Tower.forward

    def twice(self: Tower, group: MediaGroup) -> Tensor:
        real(self, group)
        return real(self, group)

    monkeypatch.setattr(Tower, "forward", twice)
    assert failing(doctor(with_media(lab))) == ["towers"]


def test_a_tower_that_mixes_up_its_media(lab: Lab, monkeypatch: Patch) -> None:
    real = Tower.forward
    monkeypatch.setattr(Tower, "forward", lambda self, group: real(self, group).flip(0))
    assert failing(doctor(with_media(lab)))[0] == "towers"


def test_a_tower_that_runs_a_second_time_in_training(lab: Lab, monkeypatch: Patch) -> None:
    real = MultimodalModel.forward

    def twice(self: MultimodalModel, batch: Batch) -> Tensor:
        self.embed(batch)
        return real(self, batch)

    monkeypatch.setattr(MultimodalModel, "forward", twice)
    assert failing(doctor(with_media(lab))) == ["towers"]


@pytest.mark.parametrize("wrong", [lambda slots: slots.flip(0), lambda slots: slots + 1])
def test_media_that_a_batch_puts_into_other_slots(
    lab: Lab, monkeypatch: Patch, wrong: Callable[[Tensor], Tensor]
) -> None:
    real = collate._media

    def mixed_up(*args: Any) -> Any:
        return {name: replace(media, slots=wrong(media.slots)) for name, media in real(*args).items()}

    monkeypatch.setattr(collate, "_media", mixed_up)
    assert failing(doctor(with_media(lab)))[0] == "towers"


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
    assert all(check.what.startswith("replies, and those learned") for check in proof.checks if not check.ok)


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
    def blind(batch: Batch, inputs: dict[str, Any]) -> dict[str, Any]:
        return inputs | ({} if batch.pack else {"attention_mask": torch.ones_like(batch.mask).long()})

    told(monkeypatch, blind)
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

    def fewer(sizes: Any, capacity: int, shares: int, begins: Any) -> list[list[int]]:
        found = real(sizes, capacity, shares, begins)
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
    assert re.search(r"FAIL  packing .*\n +✗ loss: [\d.]+ and [\d.]+, apart [\d.e-]+ > 1e-05\n", first)
    assert f"→ {SUSPECTS['packing']}" in first
    assert f"→ may follow from packing; if not, {SUSPECTS['trees']}" in report.failed[1].text()
    assert f"begin with packing, stage sft: {SUSPECTS['packing']}" in report.verdict()
