"""The benchmarks, cut short."""

import json
import sys
from pathlib import Path

import pytest

from scripts.bench import encode
from tests.makers import needs_assets

ROOT = Path(__file__).parents[1]


@pytest.mark.assets
def test_the_rate_of_encoding_is_told_for_each_kind_of_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    needs_assets("smollm2-135m-instruct", "efficientnet-lite0", "easy-vqa", "llamafactory-data")
    monkeypatch.chdir(ROOT)
    # The script sets it for good; the test doesn't.
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setattr(sys, "argv", ["encode.py", "--rows=8", "--rounds=1", "--json"])
    encode.main()
    told = json.loads(capsys.readouterr().out)
    assert [rate["conversations"] for rate in told["rates"]] == [8, 2, 8]
    for rate in told["rates"]:
        assert rate["ratio"] == pytest.approx(rate["together"] / rate["tokenizer"])
