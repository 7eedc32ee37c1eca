"""Parts that the tests of a run share; each test trains in a run folder of its own."""

import os
from pathlib import Path

import pytest
import torch

from tests.makers import Lab

os.environ.setdefault("TQDM_DISABLE", "1")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)  # tiny tensors; and sums are taken in one order


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab.make(tmp_path)
