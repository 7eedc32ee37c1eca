"""A small valid config, and ways to read changed copies of it in the working directory."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mmsft.config import Origins, RunConfig, Spec, read_config
from mmsft.errors import ConfigError

RUN = """\
out: runs/small
model:
  decoder: {name: tiny, lora: {r: 4}}
  towers:
    image: {modality: {kind: fake}, adapter: {kind: fake, width: 3}}
stages:
  - name: align
    recipe: {sources: [{path: data/a.jsonl, format: llava}]}
    train: {towers.image.adapter: {lr: 1e-3}}
    duration: 1 epoch
    batch: 16 examples
  - name: instruct
    recipe: mix
    train:
      towers.image.adapter: {lr: 2e-5}
      decoder.lora: {lr: 1e-4}
    duration: 100 steps
    batch: 4096 tokens
"""
MIX = """\
sources:
  - {path: data/a.jsonl, format: llava}
  - {path: data/b.json, format: sharegpt, name: chat}
validation: {fraction: 0.1}
"""


@dataclass(frozen=True)
class Fake:
    """Stands for a modality and for an adapter."""

    width: int = 2


def _resolve(settings: Mapping[str, Any]) -> Spec:
    if settings["kind"] != "fake":
        raise ValueError(f"unknown kind {settings['kind']!r}; known: fake")
    return Spec("fake", Fake(settings.get("width", 2)))


def swapped(*changes: tuple[str, str], text: str = RUN) -> str:
    """Returns the config with pieces of its text replaced, each of which must be there once."""
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def read(text: str = RUN, *overrides: str) -> tuple[RunConfig, Origins]:
    """Reads the text as ``run.yaml`` of the working directory."""
    Path("run.yaml").write_text(text, encoding="utf-8")
    return read_config(Path("run.yaml"), overrides, {"modality": _resolve, "adapter": _resolve})


def problems(text: str = RUN, *overrides: str) -> list[str]:
    """Returns the lines that reading the text reports, which must be at least one."""
    with pytest.raises(ConfigError) as caught:
        read(text, *overrides)
    first, *lines = str(caught.value).splitlines()
    assert first.startswith(f"run.yaml: {len(lines)} problem")
    return [line.removeprefix("  - ") for line in lines]
