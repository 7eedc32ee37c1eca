"""The composition root: knows every part and holds no algorithm."""

from mmsft.run.execute import execute
from mmsft.run.load import Run, load_run
from mmsft.run.open import open_run

__all__ = ["Run", "execute", "load_run", "open_run"]
