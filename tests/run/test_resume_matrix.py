"""Cells of the matrix of `tests.run.matrix`: other processes, other workers, on files and on streamed shards."""

from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.run.matrix import Setting, calm, config, context, files, killed_and_resumed, shards


@pytest.mark.parametrize(
    ("streamed", "killed", "resumed"),
    [(False, Setting(2, 1), Setting(1, 3)), (True, Setting(1, 1), Setting(2, 0))],
)
def test_a_run_killed_in_its_second_epoch_goes_on_with_other_processes_and_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streamed: bool, killed: Setting, resumed: Setting
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setenv("MMSFT_CACHE", str(tmp_path / "cache"))
    server = context()
    with shards(tmp_path) if streamed else nullcontext(files(tmp_path)) as sources:
        made = config(tmp_path, sources)
        calm(server, made)
        cell = killed_and_resumed(server, made, "killed", killed, resumed, seed=1)
    assert cell.same_order
    assert cell.same_ledger
    assert cell.apart < 1e-6  # fp32 sums in another order
