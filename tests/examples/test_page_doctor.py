"""docs/doctor.md lists the proofs that there are, its commands run, and its example is what they print."""

import re
from pathlib import Path

import pytest

from mmsft.run.examination import SUSPECTS
from mmsft.run.invariance import EXACT, ROUNDED
from tests.examples.pages import DOCS, blocks, run_page
from tests.makers import Lab

TEXT = (DOCS / "doctor.md").read_text(encoding="utf-8")


def shape(line: str) -> str:
    """Returns a line without its numbers."""
    return re.sub(r"\d+(\.\d+)?(e-\d+)?", "0", line)


def test_the_page_runs_and_shows_what_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lab = Lab.make(tmp_path)
    lab.write(lab.config("run", [lab.stage("instruct", train={"decoder.lora": {"lr": 1e-3}})]))
    monkeypatch.chdir(tmp_path)
    shown = [block for block in blocks("doctor.md") if block.language == "text"]
    monkeypatch.setattr("tests.examples.pages.blocks", lambda page: [b for b in blocks(page) if b not in shown])
    variables = run_page("doctor.md", monkeypatch)
    assert variables["report"].ok
    printed = {shape(line) for line in capsys.readouterr().out.splitlines()}
    for line in shown[0].text.splitlines():
        assert shape(line) in printed or line.strip() == "…"


def test_the_page_lists_the_proofs_in_their_order_and_the_bounds() -> None:
    [table] = re.findall(r"<!-- table: proofs -->\n((?:\|.+\n)+)", TEXT)
    assert re.findall(r"^\| `(.+?)` \|", table, re.M) == list(SUSPECTS)
    for bound, of in (
        (EXACT.loss, "of the loss"),
        (EXACT.gradient, "of the gradient"),
        (ROUNDED.loss, ""),
        (ROUNDED.norm, ""),
    ):
        words = f"{bound:.0e}".replace("e-0", "e-")
        assert (f"{words} {of}" if of else f"({words})") in TEXT
