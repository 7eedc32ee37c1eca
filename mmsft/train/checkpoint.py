"""Checkpoints: whole or not there, and all that a run needs to go on as if it had never stopped."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from mmsft.errors import CheckpointError, Diverged
from mmsft.model.weights import load_weights, save_weights, share

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
        before: steps done in earlier stages.
        done: the stage is over, be it that it stopped early.
        tokens: read by all processes in the stage.
        order: hash of the rows seen.
        ledger: what became of the rows, by source.
        best: lowest validation loss in the stage.
        best_at: the step with it.
        stale: evaluations since.
        config: the settings that decide the weights.
        rows: of each of the stage's sources.
    """

    stage: int
    name: str
    step: int
    steps: int
    before: int = 0
    done: bool = False
    tokens: int = 0
    order: str = ""
    ledger: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    best: float | None = None
    best_at: int | None = None
    stale: int = 0
    config: Mapping[str, Any] = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)

    @property
    def checkpoint(self) -> str:
        """Name of the state's checkpoint."""
        return self.named(self.step)

    def named(self, step: int) -> str:
        """Returns the name of the stage's checkpoint after a step."""
        return f"{self.stage:02d}-{self.name}-{step:07d}"

    def moved(self, **changes: Any) -> "State":
        """Returns the state with some values changed."""
        return replace(self, **changes)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    path: Path
    state: State


def save(
    folder: Path,
    state: State,
    model: nn.Module,
    optimizer: Optimizer,
    names: Mapping[str, nn.Parameter],
    kept: set[str],
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
        Diverged: a weight isn't finite.
    """
    if odd := [name for name in sorted(kept) if not names[name].isfinite().all()]:
        raise Diverged(
            f"step {state.step}: {odd[0]} isn't finite any more, so it isn't saved; the last checkpoint is older; "
            "start another run from it (`init_from`, another `out`) with a lower learning rate or `clip`"
        )
    final = folder / state.checkpoint
    aside = folder / f"{_ASIDE}{final.name}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        save_weights(model, aside / "weights.safetensors", kept)
        save_file(_moments(optimizer, names), aside / "optimizer.safetensors")
        (aside / "state.json").write_text(json.dumps(asdict(state), indent=1), encoding="utf-8")
        share(aside, "state.json")
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
    name_of = {id(parameter): name for name, parameter in names.items()}
    return {
        f"{name_of[id(parameter)]}//{key}": value.detach().cpu().contiguous()
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
    """Returns the complete checkpoints of a run, oldest first; what a killed save left is none.

    Raises:
        CheckpointError: one was damaged after it was complete.
    """
    found = []
    for path in sorted(folder.glob("*")) if folder.is_dir() else []:
        marker = path / MARKER
        if path.name.startswith(_ASIDE) or not marker.is_file():
            continue
        try:
            _check_sizes(path, json.loads(marker.read_text(encoding="utf-8")))
            found.append(Checkpoint(path, _read_state(path)))
        except (OSError, ValueError) as error:
            if not path.exists():  # since it was listed, the process that trains has pruned it
                continue
            raise CheckpointError(f"{path}: damaged: {error}; delete this folder to use the one before it") from error
    return sorted(found, key=lambda checkpoint: (checkpoint.state.stage, checkpoint.state.step))


def _check_sizes(path: Path, sizes: Mapping[str, int]) -> None:
    for name, size in sizes.items():
        found = (path / name).stat().st_size
        if found != size:
            raise ValueError(f"{name} has {found} bytes, and {size} were written")


def _read_state(path: Path) -> State:
    values = json.loads((path / "state.json").read_text(encoding="utf-8"))
    try:
        return State(**values)
    except TypeError as error:
        raise CheckpointError(f"{path}: written by another version of mmsft: {error}") from None


def restore_weights(checkpoint: Path, model: nn.Module) -> set[str]:
    """Loads a checkpoint's weights into the model; returns their canonical names."""
    return load_weights(model, checkpoint / "weights.safetensors")


def check_weights(checkpoint: Path, model: nn.Module) -> None:
    """Tells whether `restore_weights` would fit the model; reads the file's header only.

    Raises:
        CheckpointError: the weights are of another model, or the file is damaged.
    """
    load_weights(model, checkpoint / "weights.safetensors", compare_only=True)


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
    # A parameter that never had a gradient has no moments; one that has some must still learn.
    if odd := sorted(stored - expected):
        raise CheckpointError(
            f"{path}: {odd[0]} learned when it was written and doesn't now; delete the checkpoint, or take "
            "another `out`"
        )
    for key, tensor in tensors.items():
        name, moment = key.split("//")
        parameter = names[name]
        # The step count stays in fp32 beside its parameter; moments take the parameter's device and type.
        value = tensor.to(parameter.device) if moment == "step" else tensor.to(parameter.device, parameter.dtype)
        optimizer.state[parameter][moment] = value


def best(checkpoints: Sequence[Checkpoint]) -> Checkpoint | None:
    """Returns the checkpoint with the lowest validation loss of the last stage, if one was measured."""
    last = checkpoints[-1].state if checkpoints else None
    if last is None or last.best_at is None:
        return None
    return next((found for found in checkpoints if found.path.name == last.named(last.best_at)), None)


def prune(folder: Path, keep: int) -> None:
    """Deletes old checkpoints, and what killed saves left.

    The last stage keeps its last `keep` and the one with its lowest validation loss; a stage before it its last one.
    """
    for rest in folder.glob(f"{_ASIDE}*"):
        shutil.rmtree(rest, ignore_errors=True)
    checkpoints = complete(folder)
    kept = {found.path for found in checkpoints[-keep:]}
    kept |= {last.path for last in {found.state.stage: found for found in checkpoints}.values()}
    if (lowest := best(checkpoints)) is not None:
        kept.add(lowest.path)
    for old in checkpoints:
        if old.path not in kept:
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
            found += differences(_by_name(old, new), _by_name(new, old), f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key}: {_shown(old)} → {_shown(new)}")
    return found


def _by_name(items: list[Any], others: list[Any]) -> dict[str, Any]:
    """Returns a list as a mapping from the items' names, as overrides take them; by place where names differ."""
    names, theirs = ([item.get("name") if isinstance(item, dict) else None for item in of] for of in (items, others))
    same = names == theirs and all(names)
    return {str(name if same else index): item for index, (name, item) in enumerate(zip(names, items, strict=True))}


def _shown(value: Any) -> str:
    """Returns a setting on one line: of a list of stages their names, of sources their names or paths."""
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        names = [item.get("name") or item.get("path") for item in value]
        if all(names):
            return ", ".join(map(str, names))
    return repr(value)
