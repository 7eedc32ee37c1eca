import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from mmsft.errors import ConfigError
from mmsft.modalities.hub import loading, located, look_for_hub

CLOSED = "http://127.0.0.1:9"
"""Refuses connections: nothing listens on the discard port."""


@pytest.fixture(autouse=True)
def _hub_not_yet_looked_for(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", CLOSED)
    look_for_hub.cache_clear()
    yield
    look_for_hub.cache_clear()


@pytest.mark.parametrize(
    "name", ["./smol", "../smol", "~/smol", "/data/models/smol", "a/b/c", r"models\smol", "smol.gguf"]
)
def test_what_looks_like_a_path_and_is_not_there_never_waits_for_the_hub(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    monkeypatch.setattr("mmsft.modalities.hub.look_for_hub", lambda: pytest.fail("asked the hub"))
    with pytest.raises(ConfigError, match="no such file or folder"):
        located(name)


def test_the_nearest_name_is_suggested_where_the_path_breaks_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "smollm2").mkdir(parents=True)
    for name, near in {
        "./models/smolm2": "smollm2",
        str(tmp_path / "model" / "smollm2"): "models",
    }.items():
        with pytest.raises(ConfigError, match=rf"did you mean '{near}'\?"):
            located(name)


def test_a_hub_id_beside_a_folder_of_its_owners_name_is_asked_of_the_hub_and_then_looked_for_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "smollm2").mkdir(parents=True)
    name = "models/smolm2"
    assert located(name) == name
    beside = r"no smolm2 in the folder .*models either \(did you mean 'smollm2'\?\)"
    with pytest.raises(ConfigError, match=beside), loading("the decoder", name):
        raise OSError("unknown")


def test_a_hub_that_does_not_answer_is_tried_once_and_then_left_alone() -> None:
    begin = time.perf_counter()
    for name in ("gpt2", "nobody/nothing"):
        assert located(name) == name
        unreachable = r"can't be loaded: http://127.*can't be reached.*has no complete copy"
        with pytest.raises(ConfigError, match=unreachable), loading("the decoder", name):
            raise OSError("no file")
    assert constants.HF_HUB_OFFLINE
    # The library alone waits 1 + 2 + 4 + 8 + 8 seconds between its tries.
    assert time.perf_counter() - begin < 10


def test_another_reason_is_not_hidden_behind_the_hub() -> None:
    look_for_hub()
    with pytest.raises(ConfigError, match="unknown architecture"), loading("the decoder", "nobody/nothing"):
        raise ValueError("unknown architecture")


def test_a_stated_offline_mode_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert look_for_hub() == "HF_HUB_OFFLINE is set"
