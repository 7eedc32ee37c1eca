"""A whole tiny run: decoder, tower, pictures, rows and a config, small enough to train in a second."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaForCausalLM

from mmsft.assets import asset_path
from mmsft.config import RecipeConfig
from mmsft.data.mixture import Measures, Mixture
from mmsft.errors import ConfigError
from mmsft.run import Run, execute, load_run
from mmsft.train.checkpoint import State, complete
from mmsft.train.loop import Step
from mmsft.types import Conversation
from tests.data.conftest import byte_level
from tests.model.tiny import clip_folder, llama_config


class Said(NamedTuple):
    """What a command line said, and its exit code."""

    code: int
    out: str
    err: str


Command = Callable[..., Said]
"""Runs a command line."""

COLOURS = ("red", "green", "blue", "teal", "navy", "gray", "gold", "pink")
"""Each row asks for one; the picture of that colour shows it."""


def decoder_folder(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Writes a two-layer Llama and a byte-level tokenizer."""
    torch.manual_seed(seed)
    tokenizer = byte_level().hf
    LlamaForCausalLM(llama_config(vocab_size=len(tokenizer), **changes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def picture(file: Path, colour: str, side: int = 8) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side), colour).save(file)
    return file


def row(number: int, image: str | None = None) -> dict[str, Any]:
    """Returns a row in the LLaVA format; rows differ in length."""
    colour = COLOURS[number % len(COLOURS)]
    ask = ("<image>\n" if image else "") + f"What is {number}" + "?" * (number % 3 + 1)
    talk = [{"from": "human", "value": ask}, {"from": "gpt", "value": colour}]
    return {"conversations": talk, "kind": "short" if len(colour) < 5 else "long"} | ({"image": image} if image else {})


def write_rows(file: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(line) + "\n" for line in rows), encoding="utf-8")
    return file


@dataclass(frozen=True)
class Lab:
    """A folder with all that a run needs."""

    folder: Path

    @classmethod
    def make(cls, folder: Path, rows: int = 24, **decoder: Any) -> "Lab":
        """Makes the parts; every third row is text only."""
        decoder_folder(folder / "decoder", **decoder)
        torch.manual_seed(1)
        clip_folder(folder / "clip")
        for colour in COLOURS:
            picture(folder / "images" / f"{colour}.png", colour)
        write_rows(folder / "rows.jsonl", cls.rows(rows))
        return cls(folder)

    @staticmethod
    def rows(count: int, first: int = 0, pictures: int = len(COLOURS)) -> list[dict[str, Any]]:
        names = [f"images/{COLOURS[number % pictures]}.png" for number in range(first, first + count)]
        return [row(first + n, name if n % 3 else None) for n, name in enumerate(names)]

    def recipe(self, file: str = "rows.jsonl", **changes: Any) -> dict[str, Any]:
        source = {"path": str(self.folder / file), "format": "llava", "name": "rows", "tags": ["kind"]}
        return {"sources": [source], "template": "chatml", "length": 150, **changes}

    def stage(self, name: str = "align", **changes: Any) -> dict[str, Any]:
        stage: dict[str, Any] = {
            "name": name,
            "recipe": self.recipe(),
            "train": {"towers.image.adapter": {"lr": 1e-2}},
            "duration": "4 steps",
            "batch": "4 examples",
            "micro_batch": "150 tokens",
        }
        return stage | changes

    def config(self, out: str, stages: Sequence[Mapping[str, Any]] | None = None, **changes: Any) -> dict[str, Any]:
        config: dict[str, Any] = {
            "out": str(self.folder / out),
            "precision": "fp32",
            "workers": 0,
            "features": {"folder": str(self.folder / "features")},
            "tokens": {"folder": str(self.folder / "tokens")},
            "model": self.model(),
            "stages": list(stages or [self.stage()]),
            "save": {"every": "2 steps", "keep": 2},
        }
        return config | changes

    def model(self, **decoder: Any) -> dict[str, Any]:
        modality = {"kind": "clip", "name": str(self.folder / "clip")}
        towers = {"image": {"modality": modality, "adapter": {"kind": "mlp2x_gelu"}}}
        settings = {"name": str(self.folder / "decoder"), "lora": {"r": 2, "alpha": 4}, **decoder}
        return {"decoder": settings, "towers": towers}

    def text_model(self, **decoder: Any) -> dict[str, Any]:
        return {"decoder": {"name": str(self.folder / "decoder"), **decoder}}

    def write(self, config: Mapping[str, Any]) -> Path:
        file = self.folder / f"{Path(str(config['out'])).name}.yaml"
        file.write_text(yaml.safe_dump(dict(config)), encoding="utf-8")
        return file

    def run(self, out: str, stages: Sequence[Mapping[str, Any]] | None = None, **changes: Any) -> Run:
        return load_run(self.write(self.config(out, stages, **changes)))


def opened(recipe: Mapping[str, Any]) -> Mixture:
    """Opens a recipe; a text has as many tokens as words."""

    def length(conversation: Conversation) -> int:
        return sum(len(turn.text.split()) for turn in conversation.turns)

    return Mixture(RecipeConfig.model_validate(recipe), Measures(lambda: lambda text: len(text.split()), length))


def finish(run: Run) -> list[Step]:
    """Trains to the end."""
    return [step for _, step, _ in execute(run)]


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def losses(folder: Path) -> list[tuple[int, int, float | None]]:
    """Returns a run's logged losses, by stage and step."""
    return [(line["stage"], line["step"], line["loss"]) for line in lines(folder / "log.jsonl") if "loss" in line]


def saved(folder: Path) -> list[State]:
    """Returns the states of a run's checkpoints, oldest first."""
    return [found.state for found in complete(folder / "checkpoints")]


def weights(folder: Path) -> dict[str, bytes]:
    """Returns the last checkpoint's weights, to the bit."""
    tensors = tensors_of(folder)
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """Returns the last checkpoint's weights."""
    return load_file(sorted((folder / "checkpoints").glob("*-*"))[-1] / "weights.safetensors")


def fetched(name: str) -> Path:
    """Returns an asset's folder; skips the test, with the command to run, if it isn't fetched, for no other reason."""
    try:
        return asset_path(name)
    except ConfigError as error:
        pytest.skip(str(error))


def needs_assets(*names: str) -> None:
    """Skips the test where one of the assets isn't fetched."""
    for name in names:
        fetched(name)
