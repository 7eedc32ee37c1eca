"""The composition root: knows every part and holds no algorithm."""

from mmsft.run.load import Run, load_run
from mmsft.run.open import open_run
from mmsft.run.stages import execute

__all__ = ["Run", "execute", "load_run", "open_run"]
