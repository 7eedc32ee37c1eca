"""The best rate at which this machine multiplies matrices, over several sizes: the peak that a roofline is drawn at."""

import json
import time

import torch

SIZES = (512, 1024, 2048, 3072)
REPEATS = 8


def main() -> None:
    """Prints GFLOP/s by precision and size."""
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    print(json.dumps({name: {size: rate(size, dtype) for size in SIZES} for name, dtype in dtypes.items()}))


def rate(size: int, dtype: torch.dtype) -> float:
    """Returns the best of some repeats, in GFLOP/s."""
    left, right = (torch.randn(size, size, dtype=dtype) for _ in range(2))
    took = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        left @ right
        took.append(time.perf_counter() - began)
    return 2 * size**3 / min(took) / 1e9


if __name__ == "__main__":
    main()
