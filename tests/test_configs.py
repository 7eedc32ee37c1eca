"""Every config and recipe that ships runs on its real parts: a step of each stage moves what it says and no more."""

from pathlib import Path

import pytest
import torch

import mmsft
from mmsft.assets import named_assets
from mmsft.errors import DataError
from mmsft.model.names import named_parameters
from mmsft.run import Run
from mmsft.run.targets import TOKENIZER, load_target
from mmsft.train.optim import matches
from tests.makers import needs_assets

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
RECIPES = sorted(
    file for file in (ROOT / "data_recipes").rglob("*.yaml") if "asset:" in file.read_text(encoding="utf-8")
)


def _shortened(path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    # A config names recipes, and these name assets: those of the demo serve all configs.
    needs_assets("smollm2-135m-instruct", "efficientnet-lite0", "easy-vqa", "llamafactory-data")
    monkeypatch.chdir(ROOT)
    stages = mmsft.load_run(path).config.stages
    overrides = [f"out={out}", "workers=0"]
    for stage in stages:
        overrides += [f"stages.{stage.name}.duration=1 step", f"stages.{stage.name}.batch=2 examples"]
        overrides += [f"stages.{stage.name}.evaluate.rows=2"] if stage.evaluate else []
    return mmsft.load_run(path, overrides)


@pytest.mark.assets
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_step_of_every_stage_moves_what_the_config_says(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _shortened(path, tmp_path / "run", monkeypatch)
    before = {name: p.detach().clone() for name, p in named_parameters(run.model()).items()}
    for stage, step, assistant in mmsft.execute(run):
        assert step.loss > 0
        after = named_parameters(assistant.model)
        moved = {name for name, old in before.items() if not torch.equal(old, after[name].detach().cpu())}
        assert moved, f"stage {stage.name} moved nothing"
        strays = [name for name in moved if not any(matches(name, pattern) for pattern in stage.train)]
        assert not strays
        for pattern in stage.train:
            assert any(matches(name, pattern) for name in moved), f"{pattern} did not move"
        before = {name: parameter.detach().clone() for name, parameter in after.items()}


@pytest.mark.assets
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_rows_of_every_recipe_encode(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_assets(TOKENIZER.removeprefix("asset:"), *named_assets(str(path)))
    monkeypatch.chdir(ROOT)
    run = load_target(str(path))
    [stage] = run.config.stages
    mixture, encoder = run.mixture(stage.recipe), run.encoder(stage.recipe)
    read, lost = 0, list[DataError]()
    for pair in mixture.train[:: max(1, len(mixture.train) // 40)]:
        try:
            row = encoder.encode(mixture.conversation(pair))
        except DataError as error:
            lost.append(error)
            continue
        assert len(row.targets)
        for placed in row.media:
            run.reader.load(placed.media)
        read += 1
    # Some preferences of the mixture are longer than it lets rows be; nothing else may be lost.
    assert read
    assert all("the recipe's length is" in str(error) for error in lost)
    assert len(lost) <= read * 0.1
