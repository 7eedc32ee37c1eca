"""The training loop, a generator: whatever else a run does happens between its steps."""

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mmsft.data.ledger import Fate, Learned
from mmsft.data.loader import StepData, refuse_other_rows
from mmsft.errors import Diverged, OutOfMemory
from mmsft.objectives import Loss
from mmsft.objectives.by_group import Sums, add_up
from mmsft.parallel import Ranks
from mmsft.train.optim import set_rate
from mmsft.types import Batch

_CPU_IS_FULL: Final = "DefaultCPUAllocator"
"""In the message of the RuntimeError with which torch refuses main memory."""
_LEARNED: Final[tuple[Fate, ...]] = ("used", "trimmed")
Objective = Callable[[nn.Module, Batch, int], Loss]


class Totals(NamedTuple):
    """What a step comes to over all processes; on the device and on the way from there one row of numbers.

    Attributes:
        grad_norm: of the gradient before clipping.
        weight: of all targets.
        entries: lines for the ledger.
        targets: learned tokens.
        tokens: that the model read, padding not counted.
        spared: tokens that it needn't read, since rows share them.
        failing: processes that have deferred an error.
        odds: 0 if all processes have divided the step alike, see `Ranks.odds`.
        loss_sum: Σ weight · nll.
        loss_count: Σ weight; for other objectives what the sum is divided by.
    """

    grad_norm: float
    weight: float
    entries: float
    targets: float
    tokens: float
    spared: float
    failing: float
    odds: float
    loss_sum: float
    loss_count: float


class _OfSource(NamedTuple):
    """What a step comes to of one source, over all processes: the loss's sum and count, and rows learned from."""

    loss_sum: float
    loss_count: float
    used: float
    trimmed: float


@dataclass
class Step:
    """One optimiser step, done; what is read of its `totals` waits for the device.

    Attributes:
        number: counted from 1 at the stage's start.
        steps: in the whole stage.
        lr: rate by pattern of the stage's `train`.
        data: this process's share of what was learned from.
        sources: number of sources of the recipe.
        fetch: gives the totals; then by source the loss's sum and count and the rows used and trimmed, and by group of
            this process's batches the loss's sum and count.
        seconds: waiting for data and computing; what is done between the steps doesn't count.
    """

    number: int
    steps: int
    lr: dict[str, float]
    data: StepData
    fetch: Callable[[], list[float]] = field(repr=False)
    sources: int = 1
    seconds: float = 0.0

    @cached_property
    def _values(self) -> list[float]:
        return self.fetch()

    @property
    def totals(self) -> Totals:
        """What the step comes to over all processes."""
        return Totals(*self._values[: len(Totals._fields)])

    @property
    def loss(self) -> float:
        """Σ weight · nll ÷ Σ weight over the whole global step."""
        return math.nan if self.learned_nothing else self.totals.loss_sum / self.totals.loss_count

    @property
    def learned_nothing(self) -> bool:
        """Whether no target of the global step has a weight, so that its loss is 0 ÷ 0."""
        return not self.totals.loss_count

    @property
    def grad_norm(self) -> float:
        """Norm of the gradient before clipping."""
        return self.totals.grad_norm

    @property
    def targets(self) -> int:
        """Learned tokens of the global step."""
        return int(self.totals.targets)

    @property
    def tokens(self) -> int:
        """Tokens of the global step that the model read."""
        return int(self.totals.tokens)

    @property
    def spared(self) -> int:
        """Tokens of the global step that it needn't read, since rows share them."""
        return int(self.totals.spared)

    def loss_by_source(self, names: Sequence[str]) -> dict[str, float]:
        """The step's loss on the rows of each source that took part."""
        found = zip(names, self._by_source, strict=True)
        return {name: each.loss_sum / each.loss_count for name, each in found if each.loss_count}

    @property
    def learned(self) -> Learned:
        """How many rows of the global step were learned from, by source and fate."""
        found: dict[tuple[int, Fate], int] = {}
        for source, each in enumerate(self._by_source):
            found |= {(source, "used"): int(each.used), (source, "trimmed"): int(each.trimmed)}
        return {kind: count for kind, count in found.items() if count}

    @property
    def by_group(self) -> Sums:
        """Sum and count of the loss on this process's rows, by group."""
        groups = [group for batch in self.data.micro for group in batch.groups]
        values = self._values[len(Totals._fields) + len(_OfSource._fields) * self.sources :]
        pairs = zip(values[::2], values[1::2], strict=True)
        return add_up({group: pair} for group, pair in zip(groups, pairs, strict=True))

    @property
    def _by_source(self) -> list[_OfSource]:
        first, width = len(Totals._fields), len(_OfSource._fields)
        starts = range(first, first + width * self.sources, width)
        return [_OfSource(*self._values[start : start + width]) for start in starts]


@dataclass(frozen=True)
class Trainer:
    """What a stage's loop needs.

    Attributes:
        model: gives nll for a batch; wrapped by `ranks`.
        optimizer: over what learns.
        objective: (model, batch, number of sources) → `Loss`.
        ranks: device, precision and processes.
        factor: step → factor of the peak learning rates.
        seed: of what is random inside a step (dropout).
        sources: number of sources of the recipe.
        clip: largest gradient norm, or None.
    """

    model: nn.Module
    optimizer: Optimizer
    objective: Objective
    ranks: Ranks
    factor: Callable[[int], float]
    seed: int
    sources: int
    clip: float | None


def train(trainer: Trainer, data: Iterable[StepData], steps: int) -> Iterator[Step]:
    """Runs a stage's steps.

    Args:
        trainer: model, optimiser and the rest.
        data: the steps still to do.
        steps: in the whole stage.

    Yields:
        Each step after the weights have moved.

    Raises:
        DataError: the processes don't agree about a step's rows; nothing of it is saved by then.
        Diverged: the loss or the gradient isn't finite; likewise.
    """
    parameters = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    waiting: Step | None = None
    began = time.perf_counter()
    for item in data:
        lr = set_rate(trainer.optimizer, trainer.factor(item.number))
        torch.manual_seed(_seed(trainer.seed, item.number, trainer.ranks.rank))
        trainer.model.train()
        with naming_what_did_not_fit(item):
            weighed, sums = backward(trainer, item)
            norm = torch.nn.utils.clip_grad_norm_(parameters, trainer.clip or math.inf)
            fetch = trainer.ranks.fetch(torch.cat([norm.detach().reshape(1).to(sums.dtype), sums]))
            step = Step(item.number + 1, steps, lr, item, fetch, trainer.sources)
            # On a GPU the check of a step waits until the next one is under way, so that the device never idles.
            if trainer.ranks.device.type == "cpu":
                check(step)
            if weighed():
                trainer.optimizer.step()
            trainer.optimizer.zero_grad(set_to_none=True)
        if waiting is not None:
            check(waiting)
        waiting = step
        step.seconds = time.perf_counter() - began
        yield step
        began = time.perf_counter()
    if waiting is not None:
        check(waiting)


def backward(trainer: Trainer, item: StepData) -> tuple[Callable[[], bool], Tensor]:
    """Accumulates the global step's gradient.

    Returns:
        Whether anything was learned: if not, Adam would still move the weights by the momentum of steps before. Asking
        waits for the device to reach this step, not for its end. And what `Step.fetch` is to give, from `weight` on.
    """
    ranks = trainer.ranks
    shares = (item.weight, len(item.entries), item.targets, item.tokens, item.spared, ranks.failing)
    rows = [item.learned.get((source, fate), 0) for source in range(trainer.sources) for fate in _LEARNED]
    counts = ranks.total(ranks.placed([*shares, ranks.odds(item.division), *rows]))
    known = ranks.fetch(counts)
    # The processes' gradients are averaged, so each contributes its sum times their number; a step in which nothing
    # can be learned leaves zero gradients rather than 0 ÷ 0.
    scale = torch.where(counts[0] > 0, ranks.count / counts[0], 0.0).float()
    sums = torch.zeros(2 + 2 * trainer.sources, dtype=ranks.wide, device=ranks.device)
    groups: list[Tensor] = []
    for number, micro in enumerate(item.micro):
        batch = micro.map(lambda tensor: tensor.to(ranks.device, non_blocking=True))
        with ranks.accumulate(trainer.model, last=number == len(item.micro) - 1):
            with ranks.autocast():
                loss = trainer.objective(trainer.model, batch, trainer.sources)
            (loss.sum * scale).backward()
        sums += torch.cat([torch.stack([loss.sum.detach(), loss.count]), loss.by_source.reshape(-1)])
        if loss.by_group is not None:
            groups.append(loss.by_group.reshape(-1).to(sums.dtype))
    sums, first = ranks.total(sums), len(counts) - len(rows)
    by_source = torch.stack([sums[2::2], sums[3::2], counts[first::2], counts[first + 1 :: 2]], 1)
    return lambda: known()[0] > 0, torch.cat([counts[:first], sums[:2], by_source.reshape(-1), *groups])


@contextmanager
def naming_what_did_not_fit(item: StepData) -> Iterator[None]:
    """Says what a step was made of that needs more memory than there is.

    Raises:
        OutOfMemory: the device, or this machine, has no more.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and _CPU_IS_FULL not in str(error):
            raise
        tokens, reason = max(batch.input_ids.numel() for batch in item.micro), str(error).partition("\n")[0]
        raise OutOfMemory(
            f"step {item.number + 1}: out of memory; its largest micro-batch has {tokens:,} tokens "
            f"({type(error).__name__}: {reason})",
            item.number,
        ) from error


def _seed(seed: int, step: int, rank: int) -> int:
    return int.from_bytes(hashlib.sha256(f"step {seed} {step} {rank}".encode()).digest()[:7], "little")


def check(step: Step) -> None:
    """Reads what a step comes to.

    Raises:
        DataError: the processes don't agree about its rows.
        Diverged: its loss or gradient norm isn't finite; names the rows.
    """
    refuse_other_rows(step.totals.odds, f"the rows of step {step.number}")
    if (math.isfinite(step.loss) or step.learned_nothing) and math.isfinite(step.grad_norm):
        return
    rows = list(dict.fromkeys(row for batch in step.data.micro for row in batch.rows or batch.ids))
    named = ", ".join(rows[:20]) + (f" and {len(rows) - 20} more" if len(rows) > 20 else "")
    raise Diverged(
        f"step {step.number}: loss {step.loss}, gradient norm {step.grad_norm} (learning rates {step.lr}); "
        f"its rows were {named}\n"
        "nothing of this step is saved: start another run (another `out`; from this one's last checkpoint, if it has "
        "one, with `init_from`) with a lower learning rate or `clip`, or look at these rows with `mmsft data show`"
    )
