"""Runs that the doctor examines, and what it found."""

from typing import Any

import pytest

from mmsft.run import Run
from mmsft.run.doctor import Report
from tests.makers import Lab, row, write_rows

Patch = pytest.MonkeyPatch

BOTH: dict[str, Any] = {"towers.image.adapter": {"lr": 1e-2}, "decoder.lora": {"lr": 1e-2}}
"""A projector and LoRA learn."""


def with_media(lab: Lab, **changes: Any) -> Run:
    return lab.run("a", [lab.stage(train=BOTH)], **changes)


def text_only(lab: Lab, **changes: Any) -> Run:
    """A run without towers, on rows without media, in which the whole decoder learns."""
    write_rows(lab.folder / "text.jsonl", [row(number) for number in range(20)])
    stage = lab.stage("sft", recipe=lab.recipe("text.jsonl"), train={"decoder": {"lr": 1e-3}})
    return lab.run("text", [stage], model=lab.text_model(), **changes)


def failing(report: Report) -> list[str]:
    return [proof.name for proof in report.failed]


def skipped(report: Report) -> set[str]:
    return {proof.name for proof in report.proofs if proof.skipped}
