"""How fast pictures and rows reach a model: each measurement is a process of its own, which prints one number.

``python -m scripts.bench.data_path images SIDE FOLDER`` prints pictures a second on two workers;
``python -m scripts.bench.data_path first SIDE FOLDER`` the seconds from imports to the first batch.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

PICTURES: Final = 200
WORKERS: Final = 2
BATCH: Final = 16
LINES: Final = 1_000_000

Read = Callable[[Path], torch.Tensor]


class Pictures(Dataset[torch.Tensor]):
    """The JPEG files of a folder, as one side reads them."""

    def __init__(self, folder: Path, read: Read) -> None:
        self.files = sorted(folder.glob("*.jpg"))
        self.read = read

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> torch.Tensor:
        torch.set_num_threads(1)
        return self.read(self.files[number])


def main() -> None:
    """Prints the number."""
    what, side, folder = sys.argv[1:]
    print({"images": images, "first": first}[what](side, Path(folder)))


def make_data(folder: Path) -> None:
    """Writes pictures of 1024 × 768 and the long file, once."""
    if folder.exists():
        return
    aside = folder.with_name(f".{folder.name}")
    aside.mkdir(parents=True, exist_ok=True)
    for number in range(PICTURES):
        # Smooth colours: noise would make files several times the size of a photograph's.
        coarse = np.random.default_rng(number).integers(0, 256, (24, 32, 3), np.uint8)
        Image.fromarray(coarse).resize((1024, 768), Image.Resampling.BICUBIC).save(aside / f"{number}.jpg", quality=90)
    with (aside / "long.jsonl").open("w", encoding="utf-8") as out:
        for number in range(LINES):
            turns = [{"from": "human", "value": f"What is {number}?"}, {"from": "gpt", "value": "A number."}]
            out.write(json.dumps({"conversations": turns}) + "\n")
    aside.rename(folder)


def images(side: str, folder: Path) -> float:
    """Returns pictures a second; the first batch, which starts the workers, isn't timed."""
    loader = DataLoader(Pictures(folder, READERS[side]()), batch_size=BATCH, num_workers=WORKERS)
    batches = iter(loader)
    next(batches)
    began = time.perf_counter()
    done = sum(len(batch) for batch in batches)
    return done / (time.perf_counter() - began)


def mmsft_reader() -> Read:
    """Returns how mmsft reads a picture for CLIP's ViT-B/16, fitted as CLIP's own processor does."""
    from mmsft.modalities.image import CLIP_MEAN, CLIP_STD
    from mmsft.modalities.picture import Frame, read_picture
    from mmsft.types import Grid

    frame = Frame(224, 224, CLIP_MEAN, CLIP_STD, "bicubic", "crop", Grid(1, 14, 14))
    return lambda file: frame.pixels(read_picture(file))


def clip_reader(name: str) -> Read:
    """Returns how an image processor of transformers reads a picture, with CLIP's usual settings."""
    import transformers

    processor: Any = getattr(transformers, name)(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224})

    def read(file: Path) -> torch.Tensor:
        pixels: torch.Tensor = processor(Image.open(file).convert("RGB"), return_tensors="pt")["pixel_values"][0]
        return pixels

    return read


def torchvision_reader() -> Read:
    """Returns how torchvision decodes a JPEG and fits it, to the same size and colours."""
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms import v2
    from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    fit = v2.Compose(
        [
            v2.Resize(224, v2.InterpolationMode.BICUBIC, antialias=True),
            v2.CenterCrop(224),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(OPENAI_CLIP_MEAN, OPENAI_CLIP_STD),
        ]
    )

    def read(file: Path) -> torch.Tensor:
        pixels: torch.Tensor = fit(decode_image(str(file), ImageReadMode.RGB))
        return pixels

    return read


READERS: Final[dict[str, Callable[[], Read]]] = {
    "mmsft": mmsft_reader,
    "CLIP processor": lambda: clip_reader("CLIPImageProcessor"),
    "CLIP processor, PIL": lambda: clip_reader("CLIPImageProcessorPil"),
    "torchvision": torchvision_reader,
}


def first(side: str, folder: Path) -> float:
    """Returns the seconds from imports to the first batch of the long file."""
    return FIRST[side](folder)


def first_of_mmsft(folder: Path) -> float:
    """Shuffles all rows and encodes a step."""
    from mmsft.data.loader import Steps, read_steps
    from mmsft.run import load_run
    from scripts.bench.ours import config
    from scripts.bench.workloads import Job

    settings = config(Job("T1", "mmsft", "fp32", 1, str(folder.parent / "parts"), str(folder)))
    settings["stages"][0]["recipe"]["sources"][0]["path"] = str(folder / "long.jsonl")
    settings["stages"][0]["batch"] = f"{BATCH} examples"
    file = folder / "run.yaml"
    file.write_text(json.dumps(settings), encoding="utf-8")
    began = time.perf_counter()
    run = load_run(file)
    [stage] = run.config.stages
    mixture = run.mixture(stage.recipe)
    steps = Steps(mixture, run.encoding(stage), 0, stage.batch, len(mixture.train))
    next(read_steps(steps, 0, workers=1, pin=False))
    return time.perf_counter() - began


def first_of_datasets(folder: Path) -> float:
    """Streams the file through a buffer of a thousand rows, and tokenises a batch."""
    from datasets import load_dataset  # type: ignore[import-untyped,unused-ignore]
    from transformers import AutoTokenizer

    began = time.perf_counter()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder.parent / "parts" / "decoder")
    rows = load_dataset("json", data_files=str(folder / "long.jsonl"), split="train", streaming=True)
    some = list(rows.shuffle(seed=0, buffer_size=1000).take(BATCH))
    tokenizer([row["conversations"][0]["value"] for row in some])
    return time.perf_counter() - began


FIRST: Final[dict[str, Callable[[Path], float]]] = {
    "mmsft": first_of_mmsft,
    "datasets, streaming": first_of_datasets,
}


if __name__ == "__main__":
    main()
