"""The demonstration, cut short: one step a stage, a dozen questions, all of its output."""

import json
import sys
from pathlib import Path

import pytest

from scripts import demo
from tests.makers import needs_assets

ROOT = Path(__file__).parents[1]
KEYS = {
    "accuracy",
    "accuracy_before",
    "accuracy_blank",
    "accuracy_shuffled",
    "majority",
    "question_only",
    "per_type",
    "test_ids_sha256",
    "train_seconds",
    "peak_rss_mb",
    "learned_tokens_per_s",
}


@pytest.mark.assets
def test_the_demo_trains_scores_answers_and_says_what_to_do_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    needs_assets("smollm2-135m-instruct", "efficientnet-lite0", "easy-vqa")
    out = tmp_path / "demo"
    stages = ("words", "align", "instruct")
    short = [f"stages.{stage}.{what}" for stage in stages for what in ("duration=1 step", "batch=4 examples")]
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(demo, "QUESTIONS", 12)
    monkeypatch.setattr(sys, "argv", ["demo.py", f"out={out}", "workers=0", *short])
    demo.main()
    result = json.loads((out / "result.json").read_text())
    assert result.keys() >= KEYS
    assert result["questions"] == result["pictures"] == 12
    # Which questions are drawn depends on nothing but the seed and the data.
    assert result["test_ids_sha256"] == "f0c27a922873a2996e7fbf177e4bc2da63ea58b7b87db1ba92907255a90d3791"
    assert 0 < result["question_only"] <= 1
    assert (out / "answers.png").stat().st_size > 1000
    printed = capsys.readouterr().out
    assert "mmsft chat" in printed
    assert str(out) in printed
    before = (out / "log.jsonl").read_bytes()
    demo.main()
    assert "is complete" in capsys.readouterr().out
    assert (out / "log.jsonl").read_bytes() == before
