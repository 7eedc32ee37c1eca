"""What the pages of the documentation say is true: all of it runs, and their links lead somewhere."""

import re
import sys
from pathlib import Path

import pytest

from mmsft.assets import ASSETS
from tests.examples.pages import DOCS, blocks, run_page
from tests.makers import Lab, picture, write_rows


def test_the_page_has_the_modality_literally_and_in_less_than_40_lines() -> None:
    [block] = [block for block in blocks("adding-a-modality.md") if block.file == "examples/tactile.py"]
    assert block.text == (DOCS.parent / "examples" / "tactile.py").read_text(encoding="utf-8")
    assert len(block.text.splitlines()) < 40


def test_the_page_on_modalities_runs(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_page("adding-a-modality.md", monkeypatch)
    said = capsys.readouterr().out
    assert "towers.tactile learns" in said
    assert said.count("60 held-out rows") == 3
    assert (desk / "runs" / "touch" / "config.yaml").exists()


def test_the_page_on_python_runs(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lab = Lab.make(desk, rows=12)
    lab.write(lab.config("run"))
    picture(desk / "shape.png", "red")
    picture(desk / "other.png", "blue")
    asked = {"picture": "shape.png", "questions": ["Which?", "Is it red?"], "answers": ["red", "yes"]}
    write_rows(desk / "vqa.jsonl", [asked])
    monkeypatch.setattr(sys, "path", [*sys.path, str(desk)])
    variables = run_page("python-api.md", monkeypatch)
    threads = variables["mixture"].conversation(variables["mixture"].train[0]).threads()
    assert threads == ((0, 1), (2, 3))
    assert variables["run"].config.model.towers["image"].adapter.value.every == 4
    assert "seed: " in capsys.readouterr().out


def anchors(page: Path) -> set[str]:
    """Returns what the headings of a page are called in links."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: str(page.stem))
def test_its_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text(encoding="utf-8")):
        file, _, anchor = target.partition("#")
        there = (page.parent / file) if file else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


def test_the_page_on_assets_lists_them_as_they_are() -> None:
    page = (DOCS / "assets.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\| `([\w-]+)` \| (\d+) \| (.+?) \| (.+?) \| ?(.*?) ?\|$", page, re.M)
    told = {name: (int(size), holds, licence) for name, size, holds, licence, _ in lines}
    assert told == {name: (asset.megabytes, asset.holds, asset.licence) for name, asset in ASSETS.items()}
    recipes = {path.stem: path.read_text(encoding="utf-8") for path in (DOCS.parent / "data_recipes").glob("*.yaml")}
    for name, *_, named in lines:
        for recipe in re.findall(r"`(\w+)`", named):
            assert f"asset:{name}/" in recipes[recipe]
    assert [name for name, asset in ASSETS.items() if asset.demo] == [name for name, *_ in lines][:5]
