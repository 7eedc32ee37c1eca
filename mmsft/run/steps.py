"""The global steps of a stage."""

from functools import cache

from mmsft.config import StageConfig
from mmsft.data.encoding import Encoding, Share
from mmsft.data.loader import Steps, plan
from mmsft.data.mixture import Mixture
from mmsft.errors import DataError
from mmsft.run.load import Run
from mmsft.types import Ints


def steps_of(run: Run, stage: StageConfig, encoding: Encoding, share: Share) -> Steps:
    """Returns a stage's global steps, for one of the processes."""
    mixture, seed = run.mixture(stage.recipe), run.order_seed(stage)
    rows = mixture.epoch

    @cache
    def tokens(row: int) -> int:
        return _tokens(mixture, encoding, mixture.train[row])

    order = mixture.order(seed)

    def length(index: int) -> int:
        return tokens(int(order.at(index, index + 1)[0]))

    limit, starts = plan(stage.batch, stage.duration, rows, length)
    return Steps(mixture, encoding, seed, stage.batch, limit, share, starts)


def _tokens(mixture: Mixture, encoding: Encoding, pair: Ints) -> int:
    try:
        return len(encoding.row(mixture, pair))
    except DataError:
        return 0
