from typing import Any

import pytest

from mmsft.config import ScheduleConfig
from mmsft.train.schedule import factor


def factors(steps: int = 10, **settings: Any) -> list[float]:
    schedule = ScheduleConfig.model_validate(settings)
    return [round(factor(schedule, step, steps), 4) for step in range(steps)]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"warmup": 0, "decay": "constant"}, [1.0] * 10),
        ({"warmup": 0, "decay": "linear"}, [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]),
        ({"warmup": 0.2, "decay": "linear"}, [0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
        ({"warmup": "4 steps", "decay": "constant"}, [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1]),
        ({"warmup": 0, "decay": "linear", "floor": 0.5}, [1, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55]),
        ({"warmup": 0, "decay": "cosine"}, [1, 0.9755, 0.9045, 0.7939, 0.6545, 0.5, 0.3455, 0.2061, 0.0955, 0.0245]),
        ({"warmup": "20 steps"}, [round((step + 1) / 20, 4) for step in range(10)]),
    ],
)
def test_the_rate_over_a_stage(settings: dict[str, Any], expected: list[float]) -> None:
    assert factors(**settings) == expected


def test_a_stage_of_one_step_learns() -> None:
    assert factors(1) == [1.0]
