"""What can't be asked is refused in words, before a tokenizer or a decoder trips over it."""

from pathlib import Path

import pytest
import torch

from mmsft.assistant import Assistant, ask, generate
from mmsft.errors import ConfigError, DataError
from mmsft.run import execute
from mmsft.types import Media
from tests.makers import Lab


@pytest.fixture(scope="module")
def assistant(tmp_path_factory: pytest.TempPathFactory) -> Assistant:
    torch.set_num_threads(1)
    return next(execute(Lab.make(tmp_path_factory.mktemp("lab")).run("run")))[2]


def test_half_a_character_is_named(assistant: Assistant) -> None:
    with pytest.raises(DataError, match=r"question: character 5 is '\\udcff', half of a surrogate pair"):
        generate(assistant, ask("What \udcff?"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch": 0}, "batch: 0 conversations"),
        ({"max_new_tokens": 0}, "max_new_tokens: 0"),
        ({"temperature": -1.0}, "temperature: -1.0"),
    ],
)
def test_arguments_out_of_their_bounds_are_refused(assistant: Assistant, options: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        generate(assistant, ask("What?"), **options)


def test_nothing_is_no_question() -> None:
    with pytest.raises(DataError, match="asks nothing"):
        ask(" \n")
    assert ask("", [Media("image", "a.png")]).turns[-1].media


def test_a_medium_is_read_before_it_is_asked_about(assistant: Assistant, tmp_path: Path) -> None:
    file = tmp_path / "torn.png"
    file.write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DataError, match=r"torn\.png"):
        assistant.read(Media("image", str(file)))
