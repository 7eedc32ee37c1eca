"""Every config and recipe that ships runs on its real parts: a step of each stage moves what it says and no more."""

from pathlib import Path

import pytest
import torch

import mmsft
from mmsft.assets import ASSETS
from mmsft.model.names import named_parameters
from mmsft.run import Run
from mmsft.train.optim import matches
from tests.makers import needs_assets

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
RECIPES = sorted(
    file for file in (ROOT / "data_recipes").rglob("*.yaml") if "asset:" in file.read_text(encoding="utf-8")
)


def _shortened(path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    needs_assets(*ASSETS)
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
def test_rows_of_every_recipe_encode(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = _shortened(ROOT / "configs" / "demo.yaml", tmp_path / "run", monkeypatch)
    recipe = mmsft.load_run(ROOT / "configs" / "demo.yaml", [f"stages.0.recipe={path}"]).config.stages[0].recipe
    mixture, encoder = run.mixture(recipe), run.encoder(recipe)
    for pair in mixture.train[:: max(1, len(mixture.train) // 20)]:
        assert len(encoder.encode(mixture.conversation(pair)).targets)
