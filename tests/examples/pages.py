"""Runs a page of the documentation: writes its files, enters its commands, executes its Python."""

import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from mmsft.cli import main

DOCS: Final = Path(__file__).parents[2] / "docs"
_BLOCK: Final = re.compile(
    r"(?:<!-- (?P<kind>\w+): (?P<name>.+?) -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.S | re.M
)


@dataclass(frozen=True)
class Block:
    """A fenced block, and what a remark ``<!-- kind: name -->`` above it says it is, e.g. a file."""

    language: str
    text: str
    kind: str | None
    name: str | None

    @property
    def file(self) -> str | None:
        return self.name if self.kind == "file" else None


def blocks(page: str) -> list[Block]:
    found = _BLOCK.finditer((DOCS / page).read_text(encoding="utf-8"))
    return [Block(match["language"], match["text"], match["kind"], match["name"]) for match in found]


def run_page(page: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Runs a page in the working directory, from top to bottom; returns the variables of its Python."""
    variables: dict[str, Any] = {"__name__": page}
    for block in blocks(page):
        if block.file:
            if not (DOCS.parent / block.file).exists():
                Path(block.file).write_text(block.text, encoding="utf-8")
        elif block.language == "console":
            for line in block.text.splitlines():
                enter(line, monkeypatch)
        else:
            assert block.language == "python"
            exec(compile(block.text, page, "exec"), variables)
    return variables


def enter(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Does what a shell would do with the line, without the seconds that a new process takes to import torch."""
    program, *arguments = shlex.split(line)
    if program == "python":
        script = Path(arguments[0])
        exec(compile(script.read_text(encoding="utf-8"), script.name, "exec"), {"__name__": "__main__"})
        return
    assert program == "mmsft", line
    with monkeypatch.context() as changed:
        changed.setattr(sys, "argv", [program, *arguments])
        changed.setattr(sys, "path", list(sys.path))
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code in (0, None), line
