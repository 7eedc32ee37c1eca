"""Held-out rows that say nearly what a training row says would be seen in training: they stay on one side."""

import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from mmsft.config import ValidationConfig
from mmsft.data.near import Near
from mmsft.errors import ConfigError
from tests.makers import opened, write_rows

WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "the",
    "lazy",
    "dog",
    "and",
    "runs",
    "along",
    "the",
    "river",
    "until",
    "it",
    "meets",
    "an",
    "old",
    "grey",
    "bear",
]


def text(number: int, changed: int = 0) -> str:
    own = [f"{word}{number}" for word in WORDS]
    return " ".join(["other", *own[1:]] if changed else own)


def test_a_text_shares_a_key_with_those_it_is_near_to_and_no_other() -> None:
    near = Near(0.7)
    first, other, changed = near.keys(text(1)), near.keys(text(2)), near.keys(text(1, changed=1))
    assert not set(first) & set(other)
    assert set(first) & set(changed)
    assert not set(other) & set(changed)
    assert near.keys("") != near.keys("Hi")  # a text of few words is compared as a whole


@pytest.mark.parametrize("near", [None, 0.7])
def test_rows_that_say_nearly_the_same_stay_on_one_side(tmp_path: Path, near: float | None) -> None:
    rows = [{"instruction": text(n, changed), "output": "x y z"} for n in range(40) for changed in (0, 1)]
    validation: dict[str, Any] = {"fraction": 0.5} | ({"near": near} if near else {})
    mixture = opened({"sources": [{"path": str(write_rows(tmp_path / "a.jsonl", rows))}], "validation": validation})
    held = set(mixture.held_out[:, 1].tolist())
    apart = sum((row in held) != (row + 1 in held) for row in range(0, 80, 2))
    assert apart == 0 if near else apart > 5


def test_without_its_library_the_way_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(ConfigError, match=r"pip install 'mmsft\[near\]'"):
        Near(0.8)


def test_near_is_for_a_fraction() -> None:
    with pytest.raises(ValidationError, match="which rows a fraction keeps together"):
        ValidationConfig.model_validate({"source": "a", "near": 0.8})
