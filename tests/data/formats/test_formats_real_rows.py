"""The formats read every row of real files that LLaMA-Factory ships."""

from pathlib import Path

import pytest

from mmsft.data.formats import FORMATS
from mmsft.data.media import resolve
from mmsft.data.sources import open_rows
from tests.makers import fetched

FILES = [
    ("alpaca", "alpaca_en_demo.json", 999),
    ("alpaca", "alpaca_zh_demo.json", 1000),
    ("alpaca", "identity.json", 91),
    ("sharegpt", "glaive_toolcall_en_demo.json", 300),
    ("sharegpt", "mllm_demo.json", 6),
    ("messages", "mllm_demo.json", 6),
    ("messages", "mllm_audio_demo.json", 3),
    ("messages", "mllm_video_demo.json", 3),
    ("messages", "mllm_video_audio_demo.json", 3),
    ("messages", "v1_sft_demo.jsonl", 500),
    ("messages", "reason_tool_use_demo_50.jsonl", 50),
]


@pytest.fixture(scope="module")
def folder() -> Path:
    return fetched("llamafactory-data")


@pytest.mark.assets
@pytest.mark.parametrize(("name", "file", "count"), FILES)
def test_every_row_is_read_and_its_media_found(folder: Path, name: str, file: str, count: int) -> None:
    rows = open_rows(folder / file)
    assert len(rows) == count
    for index in range(count):
        row = rows.row_id(index)
        for turn in FORMATS[name](rows[index], row).turns:
            for medium in turn.media:
                assert resolve(medium.ref, folder, row)


@pytest.mark.assets
def test_called_functions_results_and_thinking_are_read_apart(folder: Path) -> None:
    rows = open_rows(folder / "reason_tool_use_demo_50.jsonl")
    turns = [turn for index in range(50) for turn in FORMATS["messages"](rows[index], rows.row_id(index)).turns]
    assert sum(turn.reasoning is not None for turn in turns) == 112
    assert sum(len(turn.tool_calls) for turn in turns) == 68
    assert sum(turn.role == "tool" for turn in turns) == 42
