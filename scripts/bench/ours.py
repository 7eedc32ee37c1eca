"""A workload by mmsft, told as its users tell it: one config."""

import json
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

from torch.utils.flop_counter import FlopCounterMode

import mmsft
from mmsft.noise import quiet_libraries
from mmsft.run import Run
from scripts.bench.workloads import ALPHA, MICRO, QUESTIONS, RANK, TOKENS, Job, Track, learning


def main() -> None:
    """Trains."""
    quiet_libraries()
    job = Job.read(sys.argv)
    run = load(job)
    track = Track()
    with FlopCounterMode(display=False) if job.purpose == "flops" else nullcontext() as counter:
        for _, step, assistant in mmsft.execute(run):
            track.ends.append(time.perf_counter())
            track.losses.append(step.loss)
            track.tokens.append(step.tokens + step.spared)
            track.targets.append(step.targets)
            track.learning = track.learning or learning(assistant.model.parameters())
            if counter is not None:
                track.flops.append(counter.get_total_flops())
            if len(track.ends) == job.steps:
                break
    track.save(job.out)


def load(job: Job) -> Run:
    """Writes the config that the workload stands for, and loads it."""
    file = Path(job.out, "run.yaml")
    # JSON is YAML.
    file.write_text(json.dumps(config(job)), encoding="utf-8")
    return mmsft.load_run(file)


def config(job: Job) -> dict[str, Any]:
    """Returns the config."""
    problem = job.problem
    rate = {"lr": problem.lr}
    decoder: dict[str, Any] = {"name": f"{job.parts}/decoder"}
    learns: dict[str, Any] = {"decoder": rate}
    towers: dict[str, Any] = {}
    # What is frozen is held as autocast would round it at each step, which computes the same.
    frozen = {"dtype": "bfloat16"} if job.precision == "bf16" else {}
    if problem.learns != "all":
        decoder |= frozen
    if problem.learns == "lora":
        decoder["lora"] = {"r": RANK, "alpha": ALPHA}
        learns = {"decoder.lora": rate}
    if problem.pictures:
        modality = {"kind": "clip", "name": f"{job.parts}/clip"}
        towers["image"] = {"modality": modality, "adapter": {"kind": "mlp2x_gelu"}, **frozen}
        learns = {"towers.image.adapter": rate} | ({} if problem.learns == "projector" else learns)
    return {
        "out": f"{job.out}/run",
        "precision": job.precision,
        "workers": 0,
        "features": {"folder": job.store or f"{job.out}/features"},
        "tokens": None,
        "model": {"decoder": decoder, "towers": towers},
        "stages": [
            {
                "name": "bench",
                "recipe": recipe(job),
                "train": learns,
                # The last step is saved before it is told; the peers save nothing, so it is left out.
                "duration": f"{job.steps + 1} steps",
                "batch": batch(job),
                "micro_batch": f"{MICRO} tokens",
                "schedule": {"warmup": 0, "decay": "constant"},
            }
        ],
    }


def batch(job: Job) -> str:
    """Returns the size of a step."""
    return f"{job.examples} examples" if job.compared or job.problem.pictures else f"{TOKENS} tokens"


def recipe(job: Job) -> dict[str, Any]:
    """Returns the rows; questions about one picture share it."""
    joined = {"join": "shared_prefix", "join_limit": QUESTIONS} if job.problem.pictures else {}
    source = {"path": f"{job.parts}/{job.kind}.jsonl", "format": "sharegpt"}
    return {"sources": [source], "template": "auto", "length": MICRO, **joined}


def order(job: Job, rows: int) -> list[int]:
    """Returns which rows of the file mmsft learns from, in turn."""
    run = load(job)
    [stage] = run.config.stages
    mixture = run.mixture(stage.recipe)
    at = mixture.order(run.order_seed(stage)).at(0, rows)
    return cast(list[int], mixture.train[at][:, 1].tolist())


if __name__ == "__main__":
    main()
