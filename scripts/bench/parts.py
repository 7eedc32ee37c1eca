"""Makes what all sides train on: rows, pictures, and one model in the layouts that the sides load."""

import json
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from mmsft.assets import resolve
from mmsft.config import DecoderConfig
from mmsft.model.decoder import load_decoder, load_tokenizer
from mmsft.model.llava_layout import to_llava
from scripts.bench.ours import load, order
from scripts.bench.workloads import EPOCHS, OURS, PICTURES, QUESTIONS, ROWS, Job

DECODER = "asset:smollm2-135m-instruct"

TEMPLATE = """\
{% for message in messages %}\
{% if loop.first and message['role'] != 'system' %}<|im_start|>system
You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>{% endif %}\
{% if not loop.first or message['role'] != 'system' %}{{ '\\n' }}{% endif %}\
<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>{% endfor %}\
{% if add_generation_prompt %}{{ '\\n<|im_start|>assistant\\n' }}{% endif %}"""
"""SmolLM2's own, but for the line break behind a reply's end: some sides would learn it, and others not."""


def make_parts(folder: Path) -> None:
    """Writes the parts, once; the folder appears whole."""
    if folder.exists():
        return
    aside = folder.with_name(f".{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    tokenizer = load_tokenizer(DecoderConfig(name=DECODER))
    tokenizer.chat_template = TEMPLATE
    rounded(load_decoder(DecoderConfig(name=DECODER))).save_pretrained(aside / "decoder")
    tokenizer.save_pretrained(aside / "decoder")
    torch.manual_seed(0)
    rounded(CLIPVisionModel(vit_b16())).save_pretrained(aside / "clip")
    write(aside / "text.jsonl", text_rows())
    write(aside / "pictures.jsonl", picture_rows(aside / "images"))
    for workload in ("T1", "M2"):
        job = Job(workload, OURS, "fp32", steps=1, parts=str(aside), out=str(aside))
        write_order(job)
        if job.problem.pictures:
            llava = to_llava(load(job).model(), tokenizer, TEMPLATE)
            llava.model.save_pretrained(aside / "llava")
            llava.processor.save_pretrained(aside / "llava")
    aside.rename(folder)


def rounded(model: Any) -> Any:
    """Rounds weights to what bf16 holds: LLaMA-Factory loads them in bf16, and all sides begin alike."""
    return model.bfloat16().float()


def vit_b16() -> CLIPVisionConfig:
    """Returns CLIP's ViT-B/16 at 224 pixels: 196 patches."""
    return CLIPVisionConfig(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        image_size=224,
        patch_size=16,
    )


def text_rows() -> list[dict[str, Any]]:
    """Returns the first Alpaca rows as dialogues."""
    rows = json.loads(resolve("asset:llamafactory-data/alpaca_en_demo.json").read_text(encoding="utf-8"))[:ROWS]
    return [
        talk("\n".join(filter(None, (row["instruction"], row["input"]))), row["output"], f"alpaca-{number}")
        for number, row in enumerate(rows)
    ]


def picture_rows(folder: Path) -> list[dict[str, Any]]:
    """Copies the first pictures that have enough questions; returns a row for each question."""
    folder.mkdir()
    source = resolve("asset:easy-vqa/train.jsonl")
    asked = defaultdict(list)
    for line in source.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        asked[row["image"]].append(row)
    rows = []
    for image in [image for image, of in asked.items() if len(of) >= QUESTIONS][:PICTURES]:
        name = Path(image).name
        shutil.copy(source.parent / image, folder / name)
        for row in asked[image][:QUESTIONS]:
            ask, answer = (turn["value"] for turn in row["conversations"])
            rows.append({**talk(ask, answer, row["id"]), "images": [f"images/{name}"]})
    return rows


def talk(ask: str, answer: str, name: str) -> dict[str, Any]:
    """Returns a row of one question."""
    turns = [{"from": "human", "value": ask}, {"from": "gpt", "value": answer}]
    return {"id": name, "conversations": turns}


def write_order(job: Job) -> None:
    """Writes the rows in mmsft's order, for the peers."""
    text = Path(job.parts, f"{job.kind}.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    write(Path(job.parts, f"{job.kind}.peers.jsonl"), [rows[at] for at in order(job, EPOCHS * len(rows))])


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    """Writes rows as JSON lines."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
