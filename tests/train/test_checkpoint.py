import errno
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from mmsft.errors import CheckpointError, Diverged
from mmsft.model.fusion import MultimodalModel
from mmsft.model.names import named_parameters
from mmsft.train import checkpoint as ckpt
from mmsft.train.checkpoint import State
from tests.model.tiny import llama


class Saved:
    """A tiny model that has done a step, and its checkpoints."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        self.folder = folder
        self.model = MultimodalModel(llama(num_hidden_layers=1))
        self.names = named_parameters(self.model)
        self.learning = {name: p for name, p in self.names.items() if "mlp" in name}
        self.optimizer = AdamW(self.learning.values(), lr=0.1, fused=True)
        self.step()

    def step(self) -> None:
        for parameter in self.learning.values():
            parameter.grad = torch.randn_like(parameter)
        self.optimizer.step()

    def save(self, step: int, stage: int = 0, **changes: Any) -> Path:
        state = State(stage, "align", step, 9, **changes)
        return ckpt.save(self.folder, state, self.model, self.optimizer, self.names, set(self.learning))


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    return Saved(tmp_path / "checkpoints")


def steps(folder: Path) -> list[int]:
    return [found.state.step for found in ckpt.complete(folder)]


def test_weights_and_optimiser_come_back_to_the_bit(saved: Saved, tmp_path: Path) -> None:
    path = saved.save(1, tokens=7, ledger={"rows": {"used": 3}}, config={"a": [1]})
    other = Saved(tmp_path / "other")
    other.step()
    assert ckpt.restore_weights(path, other.model) == set(saved.learning)
    ckpt.restore_optimizer(path, other.optimizer, other.names)
    torch.manual_seed(5)
    saved.step()
    torch.manual_seed(5)
    other.step()
    assert all(torch.equal(parameter, other.names[name]) for name, parameter in saved.names.items())
    [found] = ckpt.complete(saved.folder)
    assert found.state == State(0, "align", 1, 9, tokens=7, ledger={"rows": {"used": 3}}, config={"a": [1]})


def test_who_may_read_one_file_may_read_all(saved: Saved) -> None:
    assert len({file.stat().st_mode for file in saved.save(1).iterdir()}) == 1


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("where", ["os.fsync", "os.rename", "mmsft.train.checkpoint.save_file"])
def test_a_full_disk_leaves_the_last_good_checkpoint(
    saved: Saved, monkeypatch: pytest.MonkeyPatch, where: str, code: int
) -> None:
    good = saved.save(1)

    def refuse(*args: object) -> None:
        raise OSError(code, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(where, refuse)
        with pytest.raises(CheckpointError, match=r"(?s)0000002: .*No space left.*before it are whole.*same command"):
            saved.save(2)
    assert [found.path for found in ckpt.complete(saved.folder)] == [good]
    assert [path.name for path in saved.folder.iterdir()] == [good.name]
    saved.save(2)
    assert steps(saved.folder) == [1, 2]


def test_what_a_killed_save_left_is_no_checkpoint_and_goes_with_the_next(saved: Saved) -> None:
    saved.save(1)
    rest = saved.folder / ".saving-00-align-0000002"
    rest.mkdir()
    (rest / ckpt.MARKER).write_text("{}")
    assert steps(saved.folder) == [1]
    saved.save(2)
    ckpt.prune(saved.folder, 5)
    assert sorted(path.name for path in saved.folder.iterdir()) == ["00-align-0000001", "00-align-0000002"]


def test_a_folder_without_its_marker_is_no_checkpoint(saved: Saved) -> None:
    (saved.save(1) / ckpt.MARKER).unlink()
    assert steps(saved.folder) == []


@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_checkpoint_is_named_with_the_way_out(saved: Saved, file: str, damage: str) -> None:
    path = saved.save(1) / file
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()
    with pytest.raises(CheckpointError, match=rf"0000001: damaged: .*{file}.*; delete this folder"):
        ckpt.complete(saved.folder)


def test_a_state_of_another_version_is_refused(saved: Saved) -> None:
    path = saved.save(1)
    state = json.loads((path / "state.json").read_text()) | {"colour": 1}
    (path / "state.json").write_text(json.dumps(state))
    marker = json.loads((path / ckpt.MARKER).read_text()) | {"state.json": (path / "state.json").stat().st_size}
    (path / ckpt.MARKER).write_text(json.dumps(marker))
    with pytest.raises(CheckpointError, match=r"another version of mmsft.*colour"):
        ckpt.complete(saved.folder)


def test_moments_of_what_does_not_learn_are_refused(saved: Saved) -> None:
    path = saved.save(1)
    some = list(saved.learning.values())[1:]
    missing = next(iter(saved.learning))
    with pytest.raises(CheckpointError, match=f"{missing} learned when it was written"):
        ckpt.restore_optimizer(path, AdamW(some), saved.names)


def test_a_parameter_that_had_no_gradient_has_no_moments(saved: Saved) -> None:
    path = saved.save(1)
    more: list[nn.Parameter] = list(saved.names.values())
    optimizer = AdamW(more)
    ckpt.restore_optimizer(path, optimizer, saved.names)
    assert len(optimizer.state) == len(saved.learning)


@pytest.mark.parametrize("keep", [1, 2])
def test_pruning_keeps_the_last_ones_and_the_best(saved: Saved, keep: int) -> None:
    for step in range(1, 6):
        saved.save(step, best=1.0, best_at=min(step, 2))
    ckpt.prune(saved.folder, keep)
    assert steps(saved.folder) == [2, 4, 5][-keep - 1 :] if keep == 2 else [2, 5]
    lowest = ckpt.best(ckpt.complete(saved.folder))
    assert lowest is not None
    assert lowest.state.step == 2


def test_a_stage_that_is_over_keeps_its_last(saved: Saved) -> None:
    for stage, step in [(0, 1), (0, 2), (1, 1), (1, 2), (1, 3)]:
        saved.save(step, stage, best_at=1 if stage == 0 else None)
    ckpt.prune(saved.folder, 2)
    assert [(found.state.stage, found.state.step) for found in ckpt.complete(saved.folder)] == [(0, 2), (1, 2), (1, 3)]
    assert ckpt.best(ckpt.complete(saved.folder)) is None


def test_differences_name_the_setting_and_both_values() -> None:
    stored: dict[str, Any] = {"seed": 0, "stages": [{"clip": 1.0, "name": "a"}], "model": {"towers": {}}}
    now = {"seed": 1, "stages": [{"clip": None, "name": "a"}], "model": {"towers": {"image": 2}}}
    assert ckpt.differences(stored, now) == [
        "model.towers.image: None → 2",
        "seed: 0 → 1",
        "stages.a.clip: 1.0 → None",
    ]
    renamed = {**stored, "stages": [{"clip": 1.0, "name": "b"}]}
    assert ckpt.differences(stored, renamed) == ["stages.0.name: 'a' → 'b'"]
    assert ckpt.differences(stored, stored) == []
    longer = {**stored, "stages": [*stored["stages"], {"clip": 1.0, "name": "b"}]}
    assert ckpt.differences(stored, longer) == ["stages: a → a, b"]
    sources = [[{"name": None, "path": f"{name}.json"} for name in names] for names in ("x", "xy")]
    assert ckpt.differences({"sources": sources[0]}, {"sources": sources[1]}) == ["sources: x.json → x.json, y.json"]


def test_weights_that_are_not_finite_are_never_saved(saved: Saved) -> None:
    good = saved.save(1)
    name = next(iter(saved.learning))
    with torch.no_grad():
        saved.learning[name][0, 0] = torch.inf
    with pytest.raises(Diverged, match=f"step 2: {name} isn't finite"):
        saved.save(2)
    assert [found.path for found in ckpt.complete(saved.folder)] == [good]


def test_a_checkpoint_that_is_pruned_while_it_is_read_is_none(saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = saved.save(1), saved.save(2)
    read = ckpt._check_sizes

    def prune_first(path: Path, sizes: Mapping[str, int]) -> None:
        if path == old:
            shutil.rmtree(old)
        read(path, sizes)

    monkeypatch.setattr(ckpt, "_check_sizes", prune_first)
    assert [found.path for found in ckpt.complete(saved.folder)] == [new]
