"""Runs that the doctor examines, ways to break them, and what it found."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor

from mmsft.data.chat import ChatEncoder
from mmsft.errors import DataError
from mmsft.model.fusion import MultimodalModel
from mmsft.run import Run
from mmsft.run.doctor import Report
from mmsft.types import Batch, Encoded, Pack
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


def told(monkeypatch: Patch, change: Callable[[Batch, dict[str, Any]], dict[str, Any]]) -> None:
    """Changes what the decoder is told."""
    real = MultimodalModel._inputs

    def changed(self: MultimodalModel, batch: Batch, embeds: Tensor) -> dict[str, Any]:
        return change(batch, real(self, batch, embeds))

    monkeypatch.setattr(MultimodalModel, "_inputs", changed)


def seeing_to(monkeypatch: Patch, until: Callable[[Pack], Tensor]) -> None:
    """Has the attention of packs see tokens for longer."""
    real = MultimodalModel._inputs

    def changed(self: MultimodalModel, batch: Batch, embeds: Tensor) -> dict[str, Any]:
        pack = batch.pack
        return real(self, replace(batch, pack=Pack(pack.segments, until(pack))) if pack else batch, embeds)

    monkeypatch.setattr(MultimodalModel, "_inputs", changed)


def siblings_too(pack: Pack) -> Tensor:
    until = pack.until.clone()
    for segment in pack.segments:
        if segment.parent >= 0:
            until[segment.start : segment.end] = pack.until[pack.segments[segment.parent].start]
    return until


def encoded_as(monkeypatch: Patch, change: Callable[[Encoded], Encoded]) -> None:
    """Changes what every conversation becomes."""
    real = ChatEncoder.encode_all

    def changed(self: ChatEncoder, *args: Any) -> list[Encoded | DataError]:
        return [change(row) if isinstance(row, Encoded) else row for row in real(self, *args)]

    monkeypatch.setattr(ChatEncoder, "encode_all", changed)
