"""A workload by transformers' Trainer: padded rows, the prompt's labels masked."""

import sys
from typing import Any

import torch
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer, LlamaForCausalLM, LlavaForConditionalGeneration, Trainer
from transformers import TrainingArguments as Arguments

from scripts.bench.recorder import Recorder, arguments
from scripts.bench.workloads import Job


def main() -> None:
    """Trains."""
    job = Job.read(sys.argv)
    settings = {**arguments(job), "remove_unused_columns": False, "train_sampling_strategy": "sequential"}
    trainer = Trainer(
        model=load(job),
        args=Arguments(**settings),
        train_dataset=job.rows(),
        data_collator=Collator(job),
        callbacks=[Recorder(job)],
    )
    trainer.train()


def load(job: Job) -> Any:
    """Loads the model in fp32; what doesn't learn is frozen."""
    if not job.problem.pictures:
        return LlamaForCausalLM.from_pretrained(job.model, dtype=torch.float32)
    model = LlavaForConditionalGeneration.from_pretrained(job.model, dtype=torch.float32)
    model.model.vision_tower.requires_grad_(False)
    if job.problem.learns == "projector":
        model.model.language_model.requires_grad_(False)
        model.lm_head.requires_grad_(False)
    return model


def messages(row: dict[str, Any]) -> list[dict[str, str]]:
    """Returns a row as the templates take it."""
    role = {"human": "user", "gpt": "assistant"}
    return [{"role": role[turn["from"]], "content": turn["value"]} for turn in row["conversations"]]


class Collator:
    """Tokenises rows, and pads them to the longest."""

    def __init__(self, job: Job) -> None:
        self.pictures = job.problem.pictures
        self.root = job.parts
        self.processor: Any = (AutoProcessor if self.pictures else AutoTokenizer).from_pretrained(job.model)
        self.tokenizer: Any = self.processor.tokenizer if self.pictures else self.processor
        self.tokenizer.padding_side = "right"

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Returns ids, mask and labels, and pixels where there are pictures."""
        talks = [messages(row) for row in rows]
        whole = [self.text(talk) for talk in talks]
        prompts = [self.text(talk[:-1], add_generation_prompt=True) for talk in talks]
        batch, starts = self.encode(whole, rows), self.encode(prompts, rows)["attention_mask"].sum(-1)
        place = torch.arange(batch["input_ids"].shape[1])
        learned = (place >= starts[:, None]) & batch["attention_mask"].bool()
        return {**batch, "labels": batch["input_ids"].masked_fill(~learned, -100)}

    def text(self, talk: list[dict[str, str]], **options: Any) -> str:
        """Renders a dialogue by the model's template."""
        text: str = self.tokenizer.apply_chat_template(talk, tokenize=False, **options)
        return text

    def encode(self, texts: list[str], rows: list[dict[str, Any]]) -> Any:
        """Tokenises and pads texts, with their pictures."""
        settings: dict[str, Any] = {"return_tensors": "pt", "padding": True}
        if not self.pictures:
            return self.tokenizer(texts, add_special_tokens=False, **settings)
        images = [Image.open(f"{self.root}/{row['images'][0]}").convert("RGB") for row in rows]
        return self.processor(images=images, text=texts, **settings)


if __name__ == "__main__":
    main()
