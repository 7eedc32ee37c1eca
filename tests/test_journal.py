from pathlib import Path

import pytest

from mmsft.errors import CheckpointError
from mmsft.journal import Journal


def test_rewinding_forgets_later_steps_and_later_stages(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "log.jsonl")
    for stage, step in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]:
        journal.write(stage, step, {"loss": step / 3})
    journal.rewind(1, 0)
    journal.rewind(0, 1)
    assert [(line["stage"], line["step"]) for line in journal.read()] == [(0, 0), (0, 1)]
    assert [line["loss"] for line in journal.read()] == [0, 1 / 3]


@pytest.mark.parametrize("torn", [b'{"stage": 0, "st', '{"stage": 0, "step": 2, "row": "é'.encode()[:-1], b"{"])
def test_half_a_line_of_a_killed_process_is_no_line(tmp_path: Path, torn: bytes) -> None:
    file = tmp_path / "log.jsonl"
    journal = Journal(file)
    journal.write(0, 1, {"row": "é"})
    file.write_bytes(file.read_bytes() + torn)
    journal.rewind(0, 5)
    journal.write(0, 2, {})
    assert [line["step"] for line in journal.read()] == [1, 2]


def test_a_journal_that_was_never_written_is_empty(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "log.jsonl")
    journal.rewind(0, 0)
    assert list(journal.read()) == []


def test_a_disk_that_refuses_is_an_error_with_the_place(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").mkdir()
    with pytest.raises(CheckpointError, match=r"log\.jsonl: can't be written.*\n.*run the same command"):
        Journal(tmp_path / "log.jsonl").write(0, 0, {})
