"""A cell of the matrix of `tests.run.matrix`: other processes, other workers."""

from pathlib import Path

import pytest

from tests.run.matrix import Setting, calm, config, context, files, killed_and_resumed


def test_a_run_killed_in_its_second_epoch_goes_on_with_other_processes_and_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    server = context()
    made = config(tmp_path, files(tmp_path))
    calm(server, made)
    cell = killed_and_resumed(server, made, "killed", Setting(2, 1), Setting(1, 3), seed=1)
    assert cell.same_order
    assert cell.same_ledger
    assert cell.apart < 1e-6  # fp32 sums in another order
