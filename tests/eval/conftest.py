"""The parts that the tests of a run share."""

from tests.run.conftest import _one_thread, lab

__all__ = ["_one_thread", "lab"]
