import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmsft.data import collate, encoding, pack, tree
from mmsft.data.chat import ChatEncoder
from mmsft.data.loader import StepData
from mmsft.errors import DataError
from mmsft.model import weights
from mmsft.model.fusion import MultimodalModel
from mmsft.model.tower import Tower
from mmsft.objectives import Loss, sft
from mmsft.run import subject
from mmsft.run.doctor import SUSPECTS, doctor
from mmsft.run.invariance import step_of
from mmsft.train import checkpoint, loop
from mmsft.train.loop import Trainer
from mmsft.types import Batch, BatchTargets, Encoded, Pack
from tests.makers import Lab, row, write_rows
from tests.run.examined import BOTH, Patch, failing, text_only, with_media

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
