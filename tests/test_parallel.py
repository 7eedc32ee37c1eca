import pytest
import torch

from mmsft.errors import ConfigError, DataError
from mmsft.parallel import Ranks


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_what_would_divide_the_model_is_refused(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{kind}", "true")
    with pytest.raises(ConfigError, match=rf"distributed type is {kind}; .*--multi_gpu"):
        Ranks("fp32")


def test_what_accelerate_runs_on_and_mmsft_does_not_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmsft.parallel._SUPPORTED", ())
    with pytest.raises(ConfigError, match="distributed type is NO;"):
        Ranks("fp32")


def test_a_process_alone_defers_nothing() -> None:
    ranks = Ranks("fp32")
    with pytest.raises(DataError, match="now"), ranks.deferred():
        raise DataError("now")
    assert not ranks.failing


def test_what_is_fetched_is_what_was_there() -> None:
    values = torch.tensor([1.5, 2**40 + 1], dtype=torch.float64)
    assert Ranks("fp32").fetch(values)() == [1.5, 2**40 + 1]


def test_processes_that_do_not_know_of_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"2 processes were started.*ACCELERATE_USE_CPU=true"):
        Ranks("fp32")
