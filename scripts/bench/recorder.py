"""Notes the steps of a Trainer of transformers, and of those made from it: TRL's and LLaMA-Factory's."""

import time
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from scripts.bench.workloads import Job, Track, learning


class Recorder(TrainerCallback):
    """Notes when each optimiser step ends, its loss as the trainer logs it, and how much it learned."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.track = Track()
        self.targets = self.tokens = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Counts tokens and labels where the model takes them, whatever collator made them."""
        self.track.learning = learning(kwargs["model"].parameters())
        kwargs["model"].register_forward_pre_hook(self.look, with_kwargs=True)

    def look(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Adds a forward pass's tokens and targets; the first label of a row has nothing before it."""
        self.tokens += content(kwargs["input_ids"], kwargs.get("attention_mask"))
        self.targets += int((kwargs["labels"][..., 1:] != -100).sum())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Closes a step."""
        self.track.ends.append(time.perf_counter())
        self.track.tokens.append(self.tokens)
        self.track.targets.append(self.targets)
        self.targets = self.tokens = 0

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Keeps a step's loss."""
        if logs and "loss" in logs:
            self.track.losses.append(float(logs["loss"]))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Writes it all."""
        self.track.save(self.job.out)


def content(ids: Tensor, mask: Tensor | None) -> int:
    """Counts the tokens that aren't padding: in a pack's own mask those that see themselves."""
    if mask is None:
        return ids.numel()
    if mask.dim() == 4:
        own = mask[:, 0].diagonal(dim1=1, dim2=2)
        return int((own if own.dtype == torch.bool else own == 0).sum())
    return int((mask != 0).sum())


def arguments(job: Job) -> dict[str, Any]:
    """Returns the settings that all trainers share: the same AdamW, rate, clipping, precision and order."""
    pictures = job.problem.pictures
    packed = "packing" in job.settings or "neat_packing" in job.settings
    return {
        "output_dir": job.out,
        "max_steps": job.steps,
        "per_device_train_batch_size": job.examples // 2 if pictures else 1 if packed else job.examples,
        "gradient_accumulation_steps": 2 if pictures else 1,
        "learning_rate": job.problem.lr,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch_fused",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "bf16": job.precision == "bf16",
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 0,
        "dataloader_num_workers": 0,
    }
