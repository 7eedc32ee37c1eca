"""A workload by LLaMA-Factory, told as its users tell it: one mapping of settings."""

import json
import sys
from pathlib import Path
from typing import Any

from llamafactory.data.mm_plugin import get_mm_plugin  # type: ignore[import-not-found,unused-ignore]
from llamafactory.data.template import TEMPLATES  # type: ignore[import-not-found,unused-ignore]
from llamafactory.train.tuner import run_exp  # type: ignore[import-not-found,unused-ignore]

from scripts.bench.recorder import Recorder, arguments
from scripts.bench.workloads import ALPHA, RANK, TOKENS, Job

NAME = "rows"


def main() -> None:
    """Trains."""
    job = Job.read(sys.argv)
    template = TEMPLATES["smollm2"]
    # As the template that parts.py gives all others: nothing follows a reply's end.
    template.default_system = template.default_system.removesuffix(".")
    template.format_assistant.slots = ["{{content}}<|im_end|>"]
    if job.problem.pictures:
        # It has no template for LLaVA on SmolLM2: its own for SmolLM2, with its own reader of LLaVA's pictures.
        template.mm_plugin = get_mm_plugin(name="llava", image_token="<image>")
    run_exp(settings(job), callbacks=[Recorder(job)])


def settings(job: Job) -> dict[str, Any]:
    """Returns what its YAML would hold."""
    problem = job.problem
    return {
        **arguments(job),
        **job.settings,
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": job.model,
        "finetuning_type": "lora" if problem.learns == "lora" else "full",
        "lora_rank": RANK,
        "lora_alpha": ALPHA,
        "lora_target": "all",
        "template": "smollm2",
        "dataset": NAME,
        "dataset_dir": data_folder(job),
        "media_dir": job.parts,
        "cutoff_len": TOKENS,
        "disable_shuffling": True,
        "overwrite_cache": True,
        "preprocessing_num_workers": None,
        # It packs so many rows at once.
        "preprocessing_batch_size": job.examples if job.compared else 1000,
        "freeze_vision_tower": True,
        "freeze_multi_modal_projector": False,
        "freeze_language_model": problem.learns == "projector",
        "disable_gradient_checkpointing": True,
        "plot_loss": False,
    }


def data_folder(job: Job) -> str:
    """Writes the list of data sets that it looks into."""
    known = {
        NAME: {
            "file_name": str(Path(job.parts, f"{job.kind}.peers.jsonl").absolute()),
            "formatting": "sharegpt",
            "columns": {"messages": "conversations"} | ({"images": "images"} if job.problem.pictures else {}),
        }
    }
    Path(job.out, "dataset_info.json").write_text(json.dumps(known), encoding="utf-8")
    return job.out


if __name__ == "__main__":
    main()
