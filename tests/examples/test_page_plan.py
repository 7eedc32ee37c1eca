"""docs/plan.md: its commands run, its sample has the form of what is printed, and its tables list what there is."""

import re
from pathlib import Path

import pytest

from mmsft.run.forecast import LIBRARIES
from mmsft.run.profile import PHASES
from mmsft.run.simulate import PARTS
from tests.examples.pages import DOCS, blocks, run_page
from tests.makers import Lab, row, write_rows

TEXT = (DOCS / "plan.md").read_text(encoding="utf-8")


def form(line: str) -> str:
    """Returns a line without its numbers, its units of time and the width of its columns."""
    line = re.sub(r"[-+]?\d[\d,.]*(e[-+]\d+)?", "0", line).replace("; that is far, so believe what was measured", "")
    return " ".join(re.sub(r"\b0 (s|min|h)\b", "0 time", line).split())


def test_the_page_runs_and_shows_what_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lab = Lab.make(tmp_path)
    write_rows(tmp_path / "text.jsonl", [row(number) for number in range(20)])
    recipe = lab.recipe("text.jsonl")
    stage = lab.stage(
        "sft", recipe=recipe, train={"decoder": {"lr": 1e-3}}, batch="300 tokens", micro_batch="400 tokens"
    )
    lab.write(lab.config("run", [stage], model=lab.text_model(), precision="bf16"))
    monkeypatch.chdir(tmp_path)
    shown = [block for block in blocks("plan.md") if block.language == "text"]
    monkeypatch.setattr("tests.examples.pages.blocks", lambda page: [b for b in blocks(page) if b not in shown])
    run_page("plan.md", monkeypatch)
    printed = {form(line) for line in capsys.readouterr().out.splitlines()}
    assert [line for line in map(form, shown[0].text.splitlines()) if line not in printed] == []
    written = {file.name for file in (tmp_path / "run" / "profile" / "sft").iterdir()}
    assert written == set(re.findall(r"`(\w+\.\w+)`", TEXT.partition("| file | holds |")[2].partition("\n\n")[0]))


def test_the_page_lists_the_parts_of_memory_and_the_phases() -> None:
    for part in (*PARTS, "libraries"):
        assert f"| `{part}` |" in TEXT
    assert f"| `libraries` | {LIBRARIES // 2**20} MiB" in TEXT
    assert [phase for phase in PHASES if phase.split(",")[0].split()[0] not in TEXT] == []
