"""What docs/text-only.md says is true: all of it runs, and each change changes what it says."""

import json
from pathlib import Path

import pytest

from mmsft import load_run
from mmsft.model.names import fresh, named_parameters
from tests.examples.pages import run_page
from tests.makers import lines, losses, tensors_of
from tests.model.seq2seq import folder as encoder_decoder


def test_the_page_on_text_runs(desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    encoder_decoder(desk / "google" / "flan-t5-small", "flan-t5")
    answer = run_page("text-only.md", monkeypatch)["answer"]
    assert 1 <= len(answer) <= 4
    said = capsys.readouterr().out
    assert said.count(" on 4 held-out rows") == 2
    runs = desk / "runs"

    assert all(name.startswith(("decoder.lora.", "decoder.new_tokens.")) for name in tensors_of(runs / "mood"))
    every, some = tensors_of(runs / "all"), tensors_of(runs / "some")
    assert "decoder.model.embed_tokens.weight" in every
    assert {name for name in every if name.startswith("decoder.model.layers.")} == set(some)
    rates = lines(runs / "some" / "log.jsonl")[1]["lr"]
    assert rates["decoder.model.layers.*.mlp"] == pytest.approx(3 * rates["decoder.model.layers"])

    held = named_parameters(load_run(runs / "half").model())
    matrices = [parameter for name, parameter in held.items() if name not in fresh(held) and parameter.ndim > 1]
    assert {matrix.dtype.itemsize for matrix in matrices} == {2}
    assert {tensor.dtype.itemsize for tensor in tensors_of(runs / "half").values()} == {4}

    first, thrifty = ([loss for *_, loss in losses(runs / run)] for run in ("mood", "thrifty"))
    assert thrifty[0] == pytest.approx(first[0], rel=1e-2)  # bf16 sums in another order
    assert json.loads((runs / "flan" / "hf" / "config.json").read_text())["architectures"] == [
        "T5ForConditionalGeneration"
    ]

    tokens = [line["tokens"] for line in lines(runs / "tokens" / "log.jsonl") if "tokens" in line]
    assert max(tokens) <= 100
    assert sum(tokens) >= 400 > sum(tokens[:-1])
