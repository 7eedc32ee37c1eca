"""The working directory of the config tests."""

from pathlib import Path

import pytest

from tests.config.small import MIX


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of its own, with the recipe `mix`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data_recipes").mkdir()
    (tmp_path / "data_recipes" / "mix.yaml").write_text(MIX)
    return tmp_path
