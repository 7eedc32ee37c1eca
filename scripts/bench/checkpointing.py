"""What it costs to compute activations a second time: milliseconds a token, the three ways in turn within one run.

    python -m scripts.bench.checkpointing [bf16|fp32] [all|lora]

SmolLM2-135M on Alpaca rows, packs of 1,024 tokens. `mmsft plan` says what memory each way takes.
"""

import statistics
import sys
from collections import defaultdict
from tempfile import TemporaryDirectory
from typing import Any, Final, get_args

import mmsft
from mmsft.config import Checkpointing
from mmsft.noise import quiet_libraries

ROUNDS: Final = 8
LORA: Final = ("model.decoder={name: 'asset:smollm2-135m-instruct', dtype: bfloat16, lora: {r: 16, alpha: 32}}",)
LEARNS: Final = {"all": "{decoder: {lr: 2.0e-5}}", "lora": "{decoder.lora: {lr: 2.0e-4}}"}


def main(precision: str = "bf16", learns: str = "all") -> None:
    quiet_libraries()
    ways = get_args(Checkpointing)
    spent: dict[str, list[float]] = defaultdict(list)
    with TemporaryDirectory() as folder:
        overrides = [
            f"out={folder}/run",
            f"precision={precision}",
            "workers=0",
            "save.every=1000 steps",
            "stages.sft.evaluate=null",
            f"stages.sft.train={LEARNS[learns]}",
            f"stages.sft.duration={1 + ROUNDS * len(ways)} steps",
            *(LORA if learns == "lora" else ()),
        ]
        steps: Any = mmsft.execute(mmsft.load_run("configs/demo_text.yaml", overrides))
        for number, (_, step, assistant) in enumerate(steps):
            if number:  # the first one warms up
                spent[ways[(number - 1) % len(ways)]].append(step.seconds / step.tokens * 1e3)
            assistant.model.checkpoint_activations(ways[number % len(ways)])
    for way in ways:
        median, least, most = statistics.median(spent[way]), min(spent[way]), max(spent[way])
        print(f"{precision} {learns:4} {way:9} {median:5.2f} ms/token ({least:.2f} … {most:.2f})")


if __name__ == "__main__":
    main(*sys.argv[1:])
