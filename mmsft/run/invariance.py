"""Measures a step as training computes it, and compares what two ways to compute it give."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmsft.data.loader import StepData
from mmsft.model.fusion import MultimodalModel
from mmsft.model.modes import evaluating
from mmsft.model.names import named_parameters
from mmsft.model.precision import rounding
from mmsft.train.loop import Totals, Trainer, backward
from mmsft.types import Batch


@dataclass(frozen=True, slots=True)
class Bounds:
    """Largest relative differences that rounding explains.

    Attributes:
        loss: of losses.
        norm: of the gradients' norms.
        gradient: of the gradients themselves; None = their directions may be anything.
    """

    loss: float
    norm: float
    gradient: float | None = None


ROUNDED: Final = Bounds(5e-2, 5e-1)
"""In 8 or 11 bits a number: through a projector that has learned nothing yet, gradients can be half rounding."""
EXACT: Final = Bounds(1e-5, 1e-3, 1e-3)
"""Sums in another order, in fp32.

Some kernels sum a product of few rows worse, by 5e-6 over a vocabulary of 49k; in the gradient at the other end of 30
layers that becomes 3e-4. In float64 it is 1e-7.
"""
REPEATED: Final = Bounds(1e-6, 1e-5, 1e-5)
"""The same computation, of which a device may do a part in no fixed order."""


@dataclass(frozen=True, slots=True)
class Check:
    """Two numbers that should be one.

    Attributes:
        what: they are of. Of a ``gradient`` they are the norms over all that learns.
        reference: the one.
        variant: the other.
        difference: between them: relative, or in whole numbers where things are counted. Of a gradient it is the norm
            of the difference, ÷ the reference's norm, so that no more than it lies between the norms.
        bound: the largest difference that passes.
    """

    what: str
    reference: float
    variant: float
    difference: float
    bound: float

    @property
    def ok(self) -> bool:
        """Whether the difference is within its bound; one that isn't finite is not."""
        return self.difference <= self.bound

    def text(self) -> str:
        """Returns the check for a terminal."""
        if self.bound == 0:
            return f"{self.what}: {self.reference:.0f} {'=' if self.ok else '≠'} {self.variant:.0f}"
        compared = "≤" if self.ok else ">"
        return (
            f"{self.what}: {self.reference:.7g} and {self.variant:.7g}, "
            f"apart {self.difference:.1e} {compared} {self.bound:.0e}"
        )


@dataclass(frozen=True, slots=True)
class Proof:
    """What is the same however it is computed, with the numbers.

    Attributes:
        stage: of the run.
        name: a word for it.
        what: was compared.
        checks: the numbers.
        suspect: which part is wrong if one of them fails.
        skipped: why nothing was compared, or None.
        error: what came instead of a number, or None.
    """

    stage: str
    name: str
    what: str = ""
    checks: tuple[Check, ...] = ()
    suspect: str = ""
    skipped: str | None = None
    error: str | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing speaks against it."""
        return self.error is None and all(check.ok for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        """Returns the proof as JSON has it."""
        values = {name: getattr(self, name) for name in ("stage", "name", "what", "skipped", "error")}
        checks = [asdict(check) | {"ok": check.ok} for check in self.checks]
        return values | {"ok": self.ok, "checks": checks, "suspect": None if self.ok else self.suspect}

    def text(self) -> str:
        """Returns the proof for a terminal."""
        fate = "skip" if self.skipped else "pass" if self.ok else "FAIL"
        lines = [f"  {fate}  {self.name:<18}{self.skipped or self.what}"]
        lines += [f"          {self.error}"] if self.error else []
        lines += [f"        {' ' if check.ok else '✗'} {check.text()}" for check in self.checks]
        return "\n".join(lines if self.ok else [*lines, f"          → {self.suspect}"])


@dataclass(frozen=True, slots=True)
class Scored:
    """What the model gave for each target, before any of it is summed.

    Attributes:
        nll: [N] −log p of the targets.
        weight: [N] their weights.
        pull: [N] the gradient of the step's loss in each of them.
        batch: [N] the micro-batch that each was in.
    """

    nll: Tensor
    weight: Tensor
    pull: Tensor
    batch: Tensor


@dataclass(frozen=True, slots=True)
class Measured:
    """A step's loss and gradient.

    Attributes:
        loss: Σ weight · nll ÷ Σ weight, as training has it.
        grad_norm: over all that learns.
        gradient: by canonical name.
        scored: what they were made from.
    """

    loss: float
    grad_norm: float
    gradient: Mapping[str, Tensor]
    scored: Scored


@dataclass
class _Watch:
    """Notes what a model scores, and the gradient that comes back to it."""

    nll: list[Tensor] = field(default_factory=list)
    weight: list[Tensor] = field(default_factory=list)
    pull: dict[int, Tensor] = field(default_factory=dict)

    def note(self, module: nn.Module, inputs: tuple[Batch], output: Tensor) -> None:
        number = len(self.nll)
        self.nll.append(output.detach())
        self.weight.append(inputs[0].targets.weight)
        output.register_hook(lambda gradient: self.pull.update({number: gradient}))

    def scored(self) -> Scored:
        pull = [self.pull.get(number, torch.zeros_like(nll)) for number, nll in enumerate(self.nll)]
        batch = [torch.full_like(nll, number) for number, nll in enumerate(self.nll)]
        return Scored(*(torch.cat(each).double().cpu() for each in (self.nll, self.weight, pull, batch)))


def measure(trainer: Trainer, step: StepData) -> Measured:
    """Computes a step's loss and gradient by the loop's own code; dropout is off, and no weight moves."""
    learning = {name: it for name, it in named_parameters(trainer.model).items() if it.requires_grad}
    watch = _Watch()
    hook = trainer.model.register_forward_hook(watch.note)
    trainer.model.zero_grad(set_to_none=True)
    try:
        with evaluating(trainer.model):
            _, totals = backward(trainer, step)
    finally:
        hook.remove()
    found = Totals(0.0, *totals[: len(Totals._fields) - 1].tolist())
    # Not on the device: several of them are compared, and training has room for one.
    gradient = {
        name: (torch.zeros_like(it) if it.grad is None else it.grad).detach().cpu() for name, it in learning.items()
    }
    measured = Measured(
        loss=found.loss_sum / found.loss_count if found.loss_count else math.nan,
        grad_norm=_norm(gradient.values()),
        gradient=gradient,
        scored=watch.scored(),
    )
    trainer.model.zero_grad(set_to_none=True)
    return measured


def step_of(batches: Iterable[Batch]) -> StepData:
    """Returns a step of these micro-batches."""
    micro = tuple(batches)
    return StepData(
        number=0,
        rows=np.zeros(0, np.int64),
        micro=micro,
        entries=(),
        learned={},
        weight=float(sum(batch.targets.weight.sum(dtype=torch.float64).item() for batch in micro)),
        targets=sum(len(batch.targets.token) for batch in micro),
        tokens=sum(int(batch.mask.sum()) for batch in micro),
        spared=0,
    )


def compare(reference: Measured, variant: Measured, bounds: Bounds) -> tuple[Check, ...]:
    """Compares losses and gradients."""
    loss = Check("loss", reference.loss, variant.loss, _apart(reference.loss, variant.loss), bounds.loss)
    norm, other = reference.grad_norm, variant.grad_norm
    if bounds.gradient is None:
        return loss, Check("gradient norm", norm, other, _apart(norm, other), bounds.norm)
    return loss, Check("gradient", norm, other, direction(reference, variant), bounds.gradient)


def direction(reference: Measured, variant: Measured) -> float:
    """Returns the norm of the difference of gradients ÷ the reference's."""
    between = _norm(tensor - variant.gradient[name] for name, tensor in reference.gradient.items())
    return between / max(reference.grad_norm, 1e-30)


@torch.no_grad()
def familys_own(model: MultimodalModel, threads: Sequence[Batch], bounds: Bounds) -> Iterator[Check]:
    """Compares the loss of threads with that of the family's own logits, for which it is told the embeddings alone.

    It does so token by token: means may agree where tokens don't. What rounding does to a logit grows with the logits,
    not with a loss that is small already, so differences are measured by the loss of a token of the vocabulary on
    average.

    Args:
        model: the root module.
        threads: batches of one thread each.
        bounds: of the loss.
    """
    ours, own, average = [], [], []
    with evaluating(model), rounding(model.decoder):
        for thread in threads:
            batch = thread.map(lambda tensor: tensor.to(model.decoder.device))
            ours.append(model(batch))
            if batch.prompts is None:
                logits = model.decoder(inputs_embeds=model.embed(batch), use_cache=False).logits
            else:
                logits = model.logits(batch)
            logits_NV = logits.flatten(0, 1)[batch.targets.at].float()
            own.append(F.cross_entropy(logits_NV, batch.targets.token, reduction="none"))
            average.append(logits_NV.logsumexp(1) - logits_NV.mean(1))
    own_N, ours_N, average_N = (torch.cat(nll).double() for nll in (own, ours, average))
    apart = float((ours_N - own_N).norm() / average_N.norm())
    yield Check("loss", float(own_N.mean()), float(ours_N.mean()), apart, bounds.loss)


def normalised(measured: Measured) -> tuple[Check, ...]:
    """Compares a step's loss with Σ weight · nll ÷ Σ weight, and each target's part in it with weight ÷ Σ weight."""
    scored = measured.scored
    share = scored.weight / scored.weight.sum()
    loss = float((share * scored.nll).sum())
    apart = float((scored.pull - share).norm() / share.norm())
    return (
        Check("loss", loss, measured.loss, _apart(loss, measured.loss), 1e-5),  # summed in fp32
        Check("pull of the targets", float(share.norm()), float(scored.pull.norm()), apart, 1e-5),
    )


def means(measured: Measured) -> float:
    """Returns the mean of the micro-batches' means, which is what the loss must not be."""
    scored = measured.scored
    each = [scored.batch == number for number in scored.batch.unique()]
    return float(torch.stack([(scored.nll * scored.weight)[of].sum() / scored.weight[of].sum() for of in each]).mean())


@contextmanager
def exact_convolutions() -> Iterator[None]:
    """Keeps cuDNN from rounding the convolutions of fp32 to ten bits, which it does by default."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def distance(reference: Tensor, variant: Tensor) -> float:
    """Returns the norm of the difference ÷ the reference's."""
    between = (reference.double() - variant.double()).norm()
    return float(between / reference.double().norm().clamp(min=1e-30))


def _apart(one: float, other: float) -> float:
    return abs(one - other) / max(abs(one), 1e-30)


def _norm(tensors: Iterable[Tensor]) -> float:
    return math.sqrt(sum(torch.linalg.vector_norm(tensor, dtype=torch.float64).item() ** 2 for tensor in tensors))
