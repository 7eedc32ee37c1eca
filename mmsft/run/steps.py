"""The global steps of a stage."""

import numpy as np

from mmsft.config import StageConfig
from mmsft.data.encoding import Encoding, Share
from mmsft.data.loader import Steps, plan
from mmsft.run.load import Run
from mmsft.types import Encoded

_AT_ONCE = 256
"""Rows of which the lengths are found together."""
_UNKNOWN = -1


def steps_of(run: Run, stage: StageConfig, encoding: Encoding, share: Share) -> Steps:
    """Returns a stage's global steps, for one of the processes."""
    mixture, seed = run.mixture(stage.recipe), run.order_seed(stage)
    order, rows = mixture.order(seed), mixture.epoch
    lengths = np.full(len(mixture.train), _UNKNOWN, np.int64)

    def length(index: int) -> int:
        row = int(order.at(index, index + 1)[0])
        if lengths[row] == _UNKNOWN:
            ahead = np.unique(order.at(index, min(index + _AT_ONCE, (index // rows + 1) * rows)))
            new = ahead[lengths[ahead] == _UNKNOWN]
            fates = encoding.rows(mixture, mixture.train[new])
            lengths[new] = [len(fate) if isinstance(fate, Encoded) else 0 for fate in fates]
        return int(lengths[row])

    limit, starts = plan(stage.batch, stage.duration, rows, length)
    return Steps(mixture, encoding, seed, stage.batch, limit, share, starts)
