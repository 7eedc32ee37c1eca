"""A workload by TRL's SFTTrainer."""

import sys
from typing import Any

from datasets import Dataset  # type: ignore[import-untyped,unused-ignore]
from datasets import Image as Picture
from peft import LoraConfig
from transformers import AutoProcessor, AutoTokenizer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from scripts.bench.hf_trainer import load, messages
from scripts.bench.recorder import Recorder, arguments
from scripts.bench.workloads import ALPHA, RANK, TOKENS, Job


def main() -> None:
    """Trains."""
    job = Job.read(sys.argv)
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = SFTTrainer(
        model=load(job),
        args=SFTConfig(**settings(job)),
        train_dataset=rows(job),
        processing_class=(AutoProcessor if job.problem.pictures else AutoTokenizer).from_pretrained(job.model),
        peft_config=lora if job.problem.learns == "lora" else None,
        callbacks=[Recorder(job)],
    )
    trainer.train()


def settings(job: Job) -> dict[str, Any]:
    """Returns what its configuration would hold."""
    asked = {**arguments(job), **job.settings, "train_sampling_strategy": "sequential"}
    asked["max_length"] = None if job.problem.pictures else TOKENS
    if job.compared and asked.pop("packing", False):
        # It packs a thousand rows at once, longest first. This is a packed step too, of the rows that the others have.
        asked |= {"padding_free": True, "max_length": None, "per_device_train_batch_size": job.examples}
    return asked


def rows(job: Job) -> Any:
    """Returns the rows as TRL's prompt and completion, whose loss is on the completion."""
    talks = [messages(row) for row in job.rows()]
    if not job.problem.pictures:
        return Dataset.from_list([{"prompt": talk[:-1], "completion": talk[-1:]} for talk in talks])
    # TRL puts the picture before the first question itself.
    told = [
        {
            "prompt": [{**talk[0], "content": talk[0]["content"].removeprefix("<image>")}],
            "completion": talk[-1:],
            "image": f"{job.parts}/{row['images'][0]}",
        }
        for talk, row in zip(talks, job.rows(), strict=True)
    ]
    return Dataset.from_list(told).cast_column("image", Picture())


if __name__ == "__main__":
    main()
