"""A folder to work in, where a tiny random decoder stands for the one that the pages name."""

from pathlib import Path

import pytest

from mmsft import assets
from tests.makers import decoder_folder


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    folder = tmp_path / "cache" / "assets"
    folder.mkdir(parents=True)
    asset = assets.ASSETS["smollm2-135m-instruct"]
    decoder_folder(folder / f"smollm2-135m-instruct-{asset.version}-{asset.form}")
    monkeypatch.setenv("MMSFT_CACHE", str(tmp_path / "cache"))
    desk = tmp_path / "desk"
    desk.mkdir()
    monkeypatch.chdir(desk)
    return desk
