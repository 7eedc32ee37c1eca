"""What tests of several folders share."""

import sys

import pytest

from mmsft import cli
from tests.makers import Command, Said


@pytest.fixture
def mmsft(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs a command line in this process."""

    def command(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["mmsft", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        return Said(int(ended.value.code or 0), out, err)

    return command
