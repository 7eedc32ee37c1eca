"""The learning rate over a stage."""

import math

from mmsft.config import ScheduleConfig
from mmsft.duration import Duration


def factor(schedule: ScheduleConfig, step: int, steps: int) -> float:
    """Returns what the learning rate is multiplied with in a step: linear warm-up, then decay to the floor.

    Args:
        schedule: its form.
        step: counted from 0.
        steps: of the whole stage.
    """
    warm = schedule.warmup.value if isinstance(schedule.warmup, Duration) else math.ceil(schedule.warmup * steps)
    if step < warm:
        return (step + 1) / warm
    done = (step - warm) / max(1, steps - warm)
    height = {"cosine": (1 + math.cos(math.pi * done)) / 2, "linear": 1 - done, "constant": 1.0}[schedule.decay]
    return schedule.floor + (1 - schedule.floor) * height
