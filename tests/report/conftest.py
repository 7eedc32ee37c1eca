"""A whole tiny run for each test of a page."""

from pathlib import Path

import pytest

from tests.makers import Lab


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab.make(tmp_path)
