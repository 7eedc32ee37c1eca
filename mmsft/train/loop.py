"""The training loop, a generator: whatever else a run does happens between its steps."""

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mmsft.data.loader import StepData
from mmsft.errors import Diverged
from mmsft.objectives import Loss
from mmsft.parallel import Ranks
from mmsft.train.optim import set_rate
from mmsft.types import Batch

Objective = Callable[[nn.Module, Batch, int], Loss]


@dataclass
class Step:
    """One optimiser step, done.

    Attributes:
        number: counted from 1 at the stage's start.
        steps: in the whole stage.
        lr: rate by pattern of the stage's `train`.
        targets: learned tokens in this process's share.
        tokens: tokens in this process's share.
        seconds: since the step before.
        data: what was learned from.
    """

    number: int
    steps: int
    lr: dict[str, float]
    targets: int
    tokens: int
    seconds: float
    data: StepData
    scalars: Tensor = field(repr=False)
    _read: list[float] = field(default_factory=list, repr=False)

    def _values(self) -> list[float]:
        if not self._read:
            self._read = self.scalars.tolist()
        return self._read

    @property
    def loss(self) -> float:
        """Σ weight · nll ÷ Σ weight over the whole global step; reading it waits for the device."""
        _, total, count, *_ = self._values()
        return math.nan if self.learned_nothing else total / count

    @property
    def learned_nothing(self) -> bool:
        """Whether no target of the global step has a weight, so that its loss is 0 ÷ 0."""
        return not self._values()[2]

    @property
    def grad_norm(self) -> float:
        """Norm of the gradient before clipping."""
        return self._values()[0]

    def loss_by_source(self, names: Sequence[str]) -> dict[str, float]:
        """The step's loss on the rows of each source that took part."""
        sums, counts = self._values()[3::2], self._values()[4::2]
        return {name: total / count for name, total, count in zip(names, sums, counts, strict=True) if count}


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
        Diverged: the loss or the gradient isn't finite; the weights are not saved by then.
    """
    before = time.perf_counter()
    parameters = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    waiting: Step | None = None
    for item in data:
        lr = set_rate(trainer.optimizer, trainer.factor(item.number))
        torch.manual_seed(_seed(trainer.seed, item.number, trainer.ranks.rank))
        trainer.model.train()
        sums = _backward(trainer, item)
        norm = torch.nn.utils.clip_grad_norm_(parameters, trainer.clip or math.inf)
        scalars = torch.cat([norm.detach().reshape(1), sums])
        now = time.perf_counter()
        step = Step(item.number + 1, steps, lr, item.targets, item.tokens, now - before, item, scalars)
        before = now
        # On a GPU the check of a step waits until the next one is under way, so that the device never idles.
        if trainer.ranks.device.type == "cpu":
            check_finite(step)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad(set_to_none=True)
        if waiting is not None:
            check_finite(waiting)
        waiting = step
        yield step
    if waiting is not None:
        check_finite(waiting)


def _backward(trainer: Trainer, item: StepData) -> Tensor:
    """Accumulates the global step's gradient; returns [Σ, count, Σ and count per source] over all processes."""
    ranks = trainer.ranks
    weight = ranks.total(torch.full((), item.weight, device=ranks.device))
    # The processes' gradients are averaged, so each contributes its sum times their number; a step in which nothing
    # can be learned leaves zero gradients rather than 0 ÷ 0.
    scale = ranks.count / weight.clamp_min(torch.finfo(torch.float32).tiny)
    sums = torch.zeros(2 + 2 * trainer.sources, device=ranks.device)
    for number, micro in enumerate(item.micro):
        batch = micro.map(lambda tensor: tensor.to(ranks.device, non_blocking=True))
        with ranks.accumulate(trainer.model, last=number == len(item.micro) - 1):
            with ranks.autocast():
                loss = trainer.objective(trainer.model, batch, trainer.sources)
            (loss.sum * scale).backward()
        sums += torch.cat([torch.stack([loss.sum.detach(), loss.count]), loss.by_source.reshape(-1)])
    return ranks.total(sums)


def _seed(seed: int, step: int, rank: int) -> int:
    return int.from_bytes(hashlib.sha256(f"step {seed} {step} {rank}".encode()).digest()[:7], "little")


def check_finite(step: Step) -> None:
    """Reads a step's loss and gradient norm.

    Raises:
        Diverged: one isn't finite; names the rows.
    """
    if (math.isfinite(step.loss) or step.learned_nothing) and math.isfinite(step.grad_norm):
        return
    rows = [row for batch in step.data.micro for row in batch.ids]
    named = ", ".join(rows[:20]) + (f" and {len(rows) - 20} more" if len(rows) > 20 else "")
    raise Diverged(
        f"step {step.number}: loss {step.loss}, gradient norm {step.grad_norm} (learning rates {step.lr}); "
        f"its rows were {named}\n"
        "the last checkpoint is from before; lower the learning rate, set `clip`, or look at these rows "
        "with `mmsft data show`"
    )
