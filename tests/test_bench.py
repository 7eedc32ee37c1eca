"""The benchmarks, cut short."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image
from transformers import AutoTokenizer

from scripts.bench import encode, ours, run
from scripts.bench.data_path import READERS
from scripts.bench.processes import VENVS, Failed, Ran
from scripts.bench.results import agreement, figure, ratios
from scripts.bench.workloads import ASKED, OURS
from tests.makers import decoder_folder, needs_assets, write_rows

ROOT = Path(__file__).parents[1]


def track(rate: float, peak: float, losses: Sequence[float] = (1.5, 1.5, 1.5), targets: int = 100) -> dict[str, Any]:
    ends = [100.0, 200.0, 200.0 + targets / rate]
    return {
        "ends": ends,
        "losses": list(losses),
        "tokens": [targets] * 3,
        "targets": [targets] * 3,
        "learning": {},
        "peak_gb": peak,
    }


def test_ratios_are_those_of_the_medians_to_the_best_peer_in_each() -> None:
    rounds = {
        OURS: [track(300, 3), track(200, 3), track(900, 9)],
        "TRL": [track(50, 12), track(60, 12), track(40, 12)],
        "TRL packed": [track(100, 8), track(150, 7), track(120, 9)],
        "LLaMA-Factory neat": [track(110, 6), track(100, 6), track(90, 5)],
    }
    [told] = ratios([figure(("T1", "bf16", side), tracks) for side, tracks in rounds.items()])
    assert (told["fastest"], told["leanest"]) == ("TRL packed", "LLaMA-Factory neat")
    assert told["speed"] == pytest.approx(300 / 120)
    assert told["memory"] == pytest.approx(3 / 6)
    assert told["speed_by_side"] == pytest.approx({"TRL": 6, "TRL packed": 2.5, "LLaMA-Factory neat": 3})
    assert (told["speed_wanted"], told["memory_wanted"]) == (1.8, 0.6)


def test_without_peers_there_is_no_ratio() -> None:
    assert ratios([figure(("T1", "bf16", OURS), [track(300, 3)])]) == []


def test_questions_are_counted_where_there_are_pictures() -> None:
    told = figure(("M2", "bf16", OURS), [track(10, 3)])  # the last step took 10 seconds
    assert (told["unit"], told["rate"]["median"]) == ("questions/s", pytest.approx(ASKED / 10))


def test_losses_are_compared_with_those_of_mmsft() -> None:
    tracks = {
        ("T1", "fp32", OURS): [track(1, 1, (3.0, 2.0, 1.0))],
        ("T1", "fp32", "TRL"): [track(1, 1, (3.0, 2.25, 0.5), targets=90)],
        ("T2", "fp32", "TRL"): [track(1, 1)],
    }
    mine, other = agreement(tracks)
    assert (mine["most_apart"], mine["same_targets"]) == (0, True)
    assert (other["side"], other["first_step_apart"], other["most_apart"]) == ("TRL", 0, 0.5)
    assert not other["same_targets"]


def enter(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["bench", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        typer.run(run.main)
    return int(ended.value.code or 0)


def test_a_missing_environment_is_named_with_the_command_that_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("scripts.bench.run.VENVS", {name: tmp_path / name for name in VENVS})
    assert enter(monkeypatch, "--only", "T2", "--out", tmp_path) == 2
    told = capsys.readouterr().err
    assert str(tmp_path / "llamafactory") in told
    assert "make bench" in told


@pytest.mark.parametrize("option", ["--only", "--sides", "--precisions"])
def test_an_unknown_name_is_refused_with_those_there_are(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert enter(monkeypatch, option, "T9", "--out", tmp_path) == 2
    assert "T9: there are" in capsys.readouterr().err


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Does here what a process of its own would do."""

    def python(venv: str, arguments: list[str], log: Path) -> Ran:
        if "scripts.bench.matmul" in arguments:
            return Ran(json.dumps({"fp32": {"512": 50.0, "1024": 100.0}}), 0.0)
        if venv != OURS:
            raise Failed(f"{arguments[1]} ended with 1")
        monkeypatch.setattr(sys, "argv", arguments[1:])
        ours.main()
        return Ran("", 0.5)

    monkeypatch.setattr("scripts.bench.run.python", python)
    monkeypatch.setattr("scripts.bench.processes.python", python)


@pytest.mark.usefixtures("inside")
def test_cut_short_on_tiny_parts_the_figures_are_those_of_the_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_parts(tmp_path / "parts")
    short = ("--rounds", 2, "--steps", 4, "--compared", 3, "--out", tmp_path)
    assert enter(monkeypatch, "--only", "T1", "--sides", OURS, "--precisions", "fp32", *short) == 0
    results = json.loads((tmp_path / "results-part.json").read_text(encoding="utf-8"))
    [told] = results["figures"]
    assert (len(told["losses"]), told["peak_gb"]["median"]) == (4, 0.5)
    assert len(told["rate"]["rounds"]) == len(results["roofline"]["fp32"]) == 2
    assert min(told["rate"]["rounds"]) > 0
    assert 0 < min(results["roofline"]["fp32"]) < 1
    assert [len(one["losses"]) for one in results["agreement"]] == [3]
    assert not results["whole"]
    kept = [json.loads(line) for line in (tmp_path / "tracks.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["job"]["purpose"] for line in kept] == ["time", "time", "flops", "agree"]
    assert kept[0]["track"]["losses"] == told["losses"]
    assert f"| T1 | fp32 | mmsft | {told['rate']['median']:.2f} |" in (tmp_path / "results-part.md").read_text("utf-8")


def test_all_readers_give_the_pixels_of_a_photograph_alike(tmp_path: Path) -> None:
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    file = tmp_path / "0.jpg"
    Image.fromarray(coarse).resize((512, 384), Image.Resampling.BICUBIC).save(file, quality=95)
    pixels = {side: make()(file) for side, make in READERS.items()}
    assert {tuple(values.shape) for values in pixels.values()} == {(3, 224, 224)}
    for side, values in pixels.items():
        assert float((values - pixels[OURS]).abs().mean()) < 0.02, side


@pytest.mark.usefixtures("inside")
def test_a_side_that_fails_is_told_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_parts(tmp_path / "parts")
    monkeypatch.setattr("scripts.bench.run.refuse_missing", lambda venvs: None)
    monkeypatch.setattr("scripts.bench.run.versions", lambda venv: {})
    short = ("--rounds", 1, "--steps", 3, "--compared", 0, "--out", tmp_path)
    assert enter(monkeypatch, "--only", "T1", "--sides", "TRL;mmsft", "--precisions", "fp32", *short) == 1
    results = json.loads((tmp_path / "results-part.json").read_text(encoding="utf-8"))
    assert [told["side"] for told in results["figures"]] == [OURS]
    assert results["failed"] == ["round 1/1: T1 fp32 TRL: scripts.bench.trl_sft ended with 1"]


def tiny_parts(folder: Path) -> None:
    """Writes a tiny decoder with a chat template, and rows for it."""
    decoder_folder(folder / "decoder", max_position_embeddings=4096)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder / "decoder")
    tokenizer.chat_template = (ROOT / "mmsft/data/templates/chatml.jinja").read_text(encoding="utf-8")
    tokenizer.save_pretrained(folder / "decoder")
    turns = [{"from": "human", "value": "Why? " * 40}, {"from": "gpt", "value": "So. " * 40}]
    write_rows(folder / "text.jsonl", [{"conversations": turns}] * 16)


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
