"""What the README shows is there: its config parses, its commands and Python names exist, its links lead somewhere."""

import ast
import re
from pathlib import Path

import pytest
import typer.main

import mmsft
from mmsft.cli import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    found: list[str] = re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)
    return found


def test_its_config_parses(tmp_path: Path) -> None:
    [text] = blocks("yaml")
    (tmp_path / "run.yaml").write_text(text)
    run = mmsft.load_run(tmp_path / "run.yaml")
    assert [stage.name for stage in run.config.stages] == ["align", "instruct"]


def test_its_python_names_exist() -> None:
    for block in blocks("python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "mmsft":
                assert hasattr(mmsft, node.attr)


def test_its_commands_exist() -> None:
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    named = set(re.findall(r"mmsft ([a-z]+)(?= )", README)) - {"needs"}
    assert named >= {"check", "train", "export", "eval", "chat", "data", "assets"}
    assert named <= known.keys()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!https?:)([^)#]+)\)", README))))
def test_its_links_lead_somewhere(target: str) -> None:
    assert (ROOT / target).exists()


def test_its_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make ([a-z]+)", README, re.M):
        assert re.search(rf"^{target}\b.*:", makefile, re.M)
