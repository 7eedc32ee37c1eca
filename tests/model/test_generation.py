import math
from pathlib import Path
from typing import Any

import pytest
import torch

from mmsft.errors import ConfigError
from mmsft.model.fusion import MultimodalModel
from mmsft.model.generation import generate
from mmsft.types import Batch
from tests.model.tiny import Row, batch_of, image, llama, llava_like


def greedy(model: MultimodalModel, row: Row, count: int) -> list[int]:
    """Continues by the full forward, one token at a time: slow, and plainly right."""
    ids = list(row.ids)
    for _ in range(count):
        ids.append(int(model.logits(batch_of([Row(ids, row.images)]))[0, -1].argmax()))
    return ids[len(row.ids) :]


def test_left_padded_rows_continue_as_each_would_alone(tmp_path: Path) -> None:
    model = llava_like(tmp_path)
    rows = [Row([1, 5, 6]), Row([1, *[-1] * 4, 9, 10, 11], [image(1)]), Row([7])]
    batch = batch_of(rows, side="left")
    found = generate(model, batch, max_new_tokens=6, stop_ids=[])
    assert found == [greedy(model, row, 6) for row in rows]


def prompt() -> Batch:
    return batch_of([Row([1, 5, 6]), Row([1, 9, 10, 11])], side="left")


def test_a_row_ends_before_its_stop_token() -> None:
    model = MultimodalModel(llama()).eval()
    free = generate(model, prompt(), max_new_tokens=8, stop_ids=[])
    stop = free[0][3]
    stopped = generate(model, prompt(), max_new_tokens=8, stop_ids=[stop])
    assert stopped[0] == free[0][: free[0].index(stop)]
    assert stop not in stopped[1]


def test_draws_are_the_seeds_and_leave_the_global_generator_alone() -> None:
    model = MultimodalModel(llama()).eval()
    before = torch.get_rng_state()
    one, two, other = (
        generate(model, prompt(), max_new_tokens=12, stop_ids=[], temperature=1.0, seed=seed) for seed in (3, 3, 4)
    )
    assert one == two
    assert one != other
    assert torch.equal(before, torch.get_rng_state())


def test_what_the_decoders_authors_ship_does_not_change_greedy_search() -> None:
    model = MultimodalModel(llama()).eval()
    expected = generate(model, prompt(), max_new_tokens=10, stop_ids=[])
    shipped = model.decoder.generation_config
    assert shipped is not None
    shipped.repetition_penalty, shipped.do_sample, shipped.top_p = 5.0, True, 0.5
    assert generate(model, prompt(), max_new_tokens=10, stop_ids=[]) == expected


@pytest.mark.parametrize("training", [True, False])
def test_generating_keeps_the_mode(training: bool) -> None:
    model = MultimodalModel(llama()).train(training)
    generate(model, prompt(), max_new_tokens=1, stop_ids=[])
    assert model.training is training


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens: 0 new tokens; write a whole number of 1 or more"),
        ({"max_new_tokens": 1.5}, "max_new_tokens: 1.5"),
        ({"temperature": -0.5}, "temperature: -0.5; write 0 for the likeliest token, or 1e-06 or more"),
        ({"temperature": 1e-40}, "temperature: 1e-40"),
        ({"temperature": math.nan}, "temperature: nan"),
        ({"temperature": math.inf}, "temperature: inf"),
        ({"seed": -1}, "seed: -1; write a whole number from 0"),
        ({"seed": 1 << 64}, "seed: 18446744073709551616"),
    ],
)
def test_arguments_out_of_their_bounds_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        generate(MultimodalModel(llama()), prompt(), **{"max_new_tokens": 1, "stop_ids": [], **options})


def test_the_coldest_draw_is_the_likeliest_token() -> None:
    # The two likeliest of this model's logits differ by more than 1e-4, a hundred times the coldest temperature.
    model = MultimodalModel(llama()).eval()
    drawn = generate(model, prompt(), max_new_tokens=4, stop_ids=[], temperature=1e-6, seed=0)
    assert drawn == generate(model, prompt(), max_new_tokens=4, stop_ids=[])
