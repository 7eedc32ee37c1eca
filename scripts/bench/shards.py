"""Writing and reading shards: beside a plain copy with tar, and how memory grows over many rows.

``python -m scripts.bench.shards`` makes rows with pictures of its own in a temporary folder. Writing takes turns with
the copy, both to the same disk; figures are medians over all rounds.
"""

import argparse
import io
import json
import os
import resource
import shutil
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from mmsft.config import RecipeConfig
from mmsft.data.mixture import Measures, Mixture
from mmsft.data.shards import build

PICTURES = 256
"""Different ones; rows share them."""


def main() -> None:
    """Measures, and prints one line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4000, help="rows that are written (default: %(default)s)")
    parser.add_argument("--read", type=int, default=200_000, help="rows that are read (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    options = parser.parse_args()
    with TemporaryDirectory() as name:
        folder = Path(name)
        rows = make_rows(folder, options.rows)
        took: dict[str, list[float]] = {"built": [], "copied": []}
        copy, out = folder / "copy.tar", folder / "out"
        for _ in range(options.rounds):
            # Both into new files, with nothing left to write of what was before.
            copy.unlink(missing_ok=True)
            shutil.rmtree(out, ignore_errors=True)
            os.sync()
            took["copied"].append(seconds(lambda: copied(folder, rows, copy)))
            took["built"].append(seconds(lambda: written(folder, out)))
        size = sum(file.stat().st_size for file in out.glob("*.tar"))
        rates = {side: size / median(times) / 1e6 for side, times in took.items()}
        ratio = median(theirs / ours for theirs, ours in zip(took["copied"], took["built"], strict=True))
        rows_a_second = options.rows / median(took["built"])
        print(f"{size / options.rows / 1e3:.0f} kB a row")
        print(f"shards written: {rates['built']:.0f} MB/s, {rows_a_second:.0f} rows/s")
        print(f"the same files copied with tarfile: {rates['copied']:.0f} MB/s; ratio {ratio:.2f}")
        grown(out, options.read)


def make_rows(folder: Path, count: int) -> list[dict[str, Any]]:
    """Writes pictures of 640 x 480 pixels, as COCO's, and rows that show them."""
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    for number in range(PICTURES):
        coarse = Image.fromarray(rng.integers(0, 255, (120, 160, 3), np.uint8))
        coarse.resize((640, 480)).save(folder / "images" / f"{number}.jpg", quality=90)
    rows = [
        {
            "id": str(number),
            "image": f"images/{number % PICTURES}.jpg",
            "conversations": [
                {"from": "human", "value": f"<image>\nWhat is in picture {number}?"},
                {"from": "gpt", "value": f"Colours, and the number {number}. " * 5},
            ],
        }
        for number in range(count)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return rows


def opened(path: Path, format: str) -> Mixture:
    """Opens a recipe of one source."""
    recipe = RecipeConfig.model_validate({"sources": [{"path": str(path), "format": format, "name": "rows"}]})
    return Mixture(recipe, Measures(lambda: len, lambda _: 1))


def written(folder: Path, out: Path) -> None:
    """Writes the rows into shards, opening the recipe included."""
    mixture = opened(folder / "rows.jsonl", "llava")
    build(mixture, mixture.train, out, "train", size=1 << 30)
    os.sync()


def copied(folder: Path, rows: list[dict[str, Any]], out: Path) -> None:
    """Writes the same files into a tar, as they are."""
    with tarfile.open(out, "w") as tar:
        for number, row in enumerate(rows):
            data = json.dumps(row).encode()
            info = tarfile.TarInfo(f"{number:09d}.json")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
            tar.add(folder / row["image"], f"{number:09d}.0.jpg")
    os.sync()


def seconds(act: Callable[[], object]) -> float:
    """Returns how long it takes, what is left to write to the disk included."""
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def grown(shards: Path, count: int) -> None:
    """Reads rows in a shuffled order, and tells the rate, and the memory after a tenth of them and at the end."""
    mixture = opened(shards / "train-*.tar", "conversation")
    order = mixture.order(0)
    held, start = [], time.perf_counter()
    for first in range(0, count, 1000):
        for row in order.at(first, min(count, first + 1000)):
            mixture.conversation(mixture.train[row])
        held.append(resident())
    took = time.perf_counter() - start
    tenth = held[len(held) // 10]
    print(
        f"{count:,} rows of shards read in training order: {count / took:.0f} rows/s; {tenth:.0f} MiB after a tenth, "
        f"{held[-1]:.0f} MiB at the end, {held[-1] / tenth - 1:+.1%}"
    )


def resident() -> float:
    """Returns the memory that the process holds, in MiB; Linux alone tells."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / (1 << 20)


if __name__ == "__main__":
    main()
