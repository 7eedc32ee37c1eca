"""Runs a stage's largest micro-batch in a process of its own, and measures what it takes."""

import json
import os
import pickle
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from mmsft.data.loader import StepData
from mmsft.errors import MmsftError, OutOfMemory
from mmsft.model.names import fresh, named_parameters
from mmsft.objectives import sft
from mmsft.parallel import Ranks
from mmsft.run.load import Run
from mmsft.run.machines import give_back_freed_memory, resident
from mmsft.run.stages import Session, optimizer_of, place
from mmsft.train.loop import Trainer, train
from mmsft.types import Batch


@dataclass(frozen=True, slots=True)
class Trial:
    """What was measured.

    Attributes:
        peak: bytes of memory at the most, without what the process took before it loaded the model.
        seconds: of a step of this one micro-batch.
    """

    peak: int
    seconds: float


@dataclass(frozen=True)
class _Job:
    """What the other process is to run: a batch, twice in a step where steps accumulate."""

    run: Run
    stage: int
    batch: Batch
    accumulates: bool


class TrialFailed(MmsftError):
    """The micro-batch could not be run."""


def trial(run: Run, stage: int, batch: Batch, *, accumulates: bool) -> Trial:
    """Runs two steps of one micro-batch in a fresh process: the optimiser's state is there in the second.

    Args:
        run: whose model it is.
        stage: number of its stage.
        batch: the micro-batch.
        accumulates: other micro-batches of its step may have left gradients.

    Raises:
        OutOfMemory: there isn't enough.
        TrialFailed: something else went wrong.
    """
    tokens = batch.input_ids.numel()
    with TemporaryDirectory() as folder:
        job, result = Path(folder) / "job", Path(folder) / "result"
        job.write_bytes(pickle.dumps(_Job(Run(run.config, run.origins), stage, batch, accumulates)))
        # What a config names as my_pkg.module:Class must be found there too.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-m", "mmsft.run.trial", str(job), str(result)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if result.exists():
            return Trial(**json.loads(result.read_text(encoding="utf-8")))
    last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    if done.returncode == -9 or "OutOfMemory" in last:
        raise OutOfMemory(f"a micro-batch of {tokens:,} tokens was tried, and ran out of memory")
    raise TrialFailed(f"a micro-batch of {tokens:,} tokens was tried, and failed ({done.returncode}): {last}")


def measure(job: _Job) -> Trial:
    """Does what `trial` asks for, in this process."""
    give_back_freed_memory()
    ranks = Ranks(job.run.config.precision)
    cuda = ranks.device.type == "cuda"
    before = resident()
    model = job.run.model()
    place(model, ranks)
    session = Session(job.run, ranks, model, fresh(named_parameters(model)))
    stage = job.run.config.stages[job.stage]
    mixture = job.run.mixture(stage.recipe)
    trainer = Trainer(
        model=model,
        optimizer=optimizer_of(session, stage, mixture),
        objective=sft,
        ranks=ranks,
        factor=lambda step: 0.0,  # a rate of 0: it shall not diverge
        seed=0,
        sources=len(mixture.sources),
        clip=stage.clip,
    )
    model.checkpoint_activations(stage.activation_checkpointing)
    micro = (job.batch,) * (1 + job.accumulates)
    weight, targets = float(job.batch.targets.weight.sum()) * len(micro), len(job.batch.targets.token) * len(micro)
    steps = [StepData(n, mixture.train[:0, 0], micro, (), {}, weight, targets, targets, 0) for n in range(2)]
    seconds = [step.seconds for step in train(trainer, steps, len(steps))]
    peak = torch.cuda.max_memory_allocated() if cuda else resident(most=True) - before
    return Trial(peak, seconds[-1] / len(micro))


if __name__ == "__main__":
    job = pickle.loads(Path(sys.argv[1]).read_bytes())
    Path(sys.argv[2]).write_text(json.dumps(asdict(measure(job))), encoding="utf-8")
