"""Checkpoints: whole or not there, and all that a run needs to go on as if it had never stopped."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from mmsft.errors import CheckpointError
from mmsft.model.weights import load_weights, save_weights

MARKER = "COMPLETE"
_ASIDE = ".saving-"


@dataclass(frozen=True)
class State:
    """Where a run stands.

    What is random inside a step (dropout) and which rows it reads follow from the seed and the step's number, so there
    is no generator's state to keep.

    Attributes:
        stage: number of the stage.
        name: its name.
        step: steps done in it.
        steps: steps that it has.
        done: the stage is over, be it that it stopped early.
        tokens: read by all processes in the stage.
        order: hash of the rows seen.
        ledger: what became of the rows.
        best: lowest validation loss in the stage.
        stale: evaluations since.
        config: the settings that decide the weights.
    """

    stage: int
    name: str
    step: int
    steps: int
    done: bool = False
    tokens: int = 0
    order: str = ""
    ledger: Mapping[str, int] = field(default_factory=dict)
    best: float | None = None
    stale: int = 0
    config: Mapping[str, Any] = field(default_factory=dict)

    def moved(self, **changes: Any) -> "State":
        """Returns the state with some values changed."""
        return replace(self, **changes)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    path: Path
    state: State


def save(
    folder: Path, state: State, model: nn.Module, optimizer: Optimizer, names: Mapping[str, nn.Parameter], kept: set[str]
) -> Path:
    """Writes a checkpoint aside, then renames it, so that it is there whole or not at all.

    Args:
        folder: ``checkpoints`` of the run.
        state: where the run stands.
        model: the root module.
        optimizer: over what learns now.
        names: canonical name → parameter, of the whole model.
        kept: names of the weights that differ from what the config loads.

    Raises:
        CheckpointError: the disk is full or refuses; earlier checkpoints are untouched.
    """
    final = folder / f"{state.stage:02d}-{state.name}-{state.step:07d}"
    if (final / MARKER).is_file():
        return final  # killed after this save, the run came here again: what it would write is the same
    aside = folder / f"{_ASIDE}{final.name}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        save_weights(model, aside / "weights.safetensors", kept)
        save_file(_moments(optimizer, names), aside / "optimizer.safetensors")
        (aside / "state.json").write_text(json.dumps(asdict(state), indent=1), encoding="utf-8")
        _seal(aside)
        os.rename(aside, final)
        _sync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise CheckpointError(
            f"{final}: the checkpoint could not be written: {error}\n"
            "the checkpoints before it are whole; make room or mend the folder, then run the same command to go on"
        ) from error
    return final


def _moments(optimizer: Optimizer, names: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Returns the optimiser's tensors as ``name//moment``."""
    name_of = {parameter: name for name, parameter in names.items()}
    return {
        f"{name_of[parameter]}//{key}": value.detach().cpu().contiguous()
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def _seal(folder: Path) -> None:
    """Brings the files to disk and writes the marker that lists them with their sizes."""
    sizes = {}
    for file in sorted(folder.iterdir()):
        _sync(file)
        sizes[file.name] = file.stat().st_size
    marker = folder / MARKER
    marker.write_text(json.dumps(sizes, indent=1), encoding="utf-8")
    _sync(marker)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def complete(folder: Path) -> list[Checkpoint]:
    """Returns the complete checkpoints of a run, oldest first; others are left alone."""
    found = []
    for path in sorted(folder.glob("*")) if folder.is_dir() else []:
        marker = path / MARKER
        if path.name.startswith(_ASIDE) or not marker.is_file():
            continue
        try:
            sizes = json.loads(marker.read_text(encoding="utf-8"))
            whole = all((path / name).stat().st_size == size for name, size in sizes.items())
            if whole:
                found.append(Checkpoint(path, _read_state(path)))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: damaged: {error}; delete it to go on from the one before") from error
    return sorted(found, key=lambda checkpoint: (checkpoint.state.stage, checkpoint.state.step))


def _read_state(path: Path) -> State:
    values = json.loads((path / "state.json").read_text(encoding="utf-8"))
    try:
        return State(**values)
    except TypeError as error:
        raise CheckpointError(f"{path}: written by another version of mmsft: {error}") from None


def restore_weights(checkpoint: Path, model: nn.Module) -> set[str]:
    """Loads a checkpoint's weights into the model; returns their canonical names."""
    return load_weights(model, checkpoint / "weights.safetensors")


def restore_optimizer(checkpoint: Path, optimizer: Optimizer, names: Mapping[str, nn.Parameter]) -> None:
    """Loads the optimiser's tensors.

    Raises:
        CheckpointError: they are not of the parameters that learn now.
    """
    path = checkpoint / "optimizer.safetensors"
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: can't be read: {error}; delete the checkpoint to use the one before") from error
    learning = {p for group in optimizer.param_groups for p in group["params"]}
    expected = {name for name, parameter in names.items() if parameter in learning}
    stored = {key.split("//")[0] for key in tensors}
    if stored and stored != expected:
        odd = sorted(stored ^ expected)
        raise CheckpointError(f"{path}: other parameters learned when it was written, e.g. {odd[0]}")
    for key, tensor in tensors.items():
        name, moment = key.split("//")
        parameter = names[name]
        # The step count stays in fp32 beside its parameter; moments take the parameter's device and type.
        value = tensor.to(parameter.device) if moment == "step" else tensor.to(parameter.device, parameter.dtype)
        optimizer.state[parameter][moment] = value


def mark_best(folder: Path, path: Path) -> None:
    """Remembers which checkpoint has the lowest validation loss."""
    aside = folder / f"{_ASIDE}best"
    aside.write_text(path.name, encoding="utf-8")
    os.replace(aside, folder / "best")


def best(folder: Path) -> Path | None:
    """Returns the checkpoint with the lowest validation loss of its stage, if one was measured."""
    marker = folder / "best"
    return folder / marker.read_text(encoding="utf-8") if marker.is_file() else None


def prune(folder: Path, keep: int) -> None:
    """Deletes old checkpoints, and what killed saves left: a stage keeps its last `keep` and the best one.

    A stage that is over keeps its last only.
    """
    for rest in folder.glob(f"{_ASIDE}*"):
        shutil.rmtree(rest, ignore_errors=True)
    kept = best(folder)
    checkpoints = complete(folder)
    current = checkpoints[-1].state.stage if checkpoints else 0
    for stage in {checkpoint.state.stage for checkpoint in checkpoints}:
        of_stage = [checkpoint for checkpoint in checkpoints if checkpoint.state.stage == stage]
        for old in of_stage[: -(keep if stage == current else 1)]:
            if old.path != kept:
                # Renamed first: a kill in the middle leaves no half checkpoint that looks whole.
                doomed = folder / f"{_ASIDE}{old.path.name}"
                os.rename(old.path, doomed)
                shutil.rmtree(doomed, ignore_errors=True)


def differences(stored: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Returns ``key: old → new`` for what differs between two nested settings."""
    found = []
    for key in sorted(stored.keys() | now.keys()):
        old, new = stored.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, f"{prefix}{key}.")
        elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
            found += differences(_by_place(old), _by_place(new), f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key}: {old!r} → {new!r}")
    return found


def _by_place(items: list[Any]) -> dict[str, Any]:
    return {str(index): item for index, item in enumerate(items)}
