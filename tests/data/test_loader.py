from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mmsft.data.encoding import Share
from mmsft.data.loader import StepData, Steps, plan, read_steps
from mmsft.duration import Duration
from mmsft.errors import DataError
from mmsft.types import Batch
from tests.makers import Lab, write_rows


@pytest.fixture(scope="module", params=[None, "shared_prefix"])
def steps(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Steps:
    """Two and a half epochs of 10 rows in steps of 4; two pictures are asked about three times each."""
    lab = Lab.make(tmp_path_factory.mktemp("lab"), rows=10)
    write_rows(lab.folder / "rows.jsonl", lab.rows(10, pictures=3))
    run = lab.run("a", [lab.stage(recipe=lab.recipe(join=request.param))])
    stage = run.config.stages[0]
    return Steps(run.mixture(stage.recipe), run.encoding(stage), 3, Duration(4, "examples"), 25)


def learned(step: StepData) -> list[tuple[list[int], int]]:
    """Returns what is learned in a step: all that a target's position sees, which names the row, and the target."""
    return sorted(pair for micro in step.micro for pair in _learned(micro))


def _learned(micro: Batch) -> Iterator[tuple[list[int], int]]:
    assert micro.pack
    tokens = torch.arange(len(micro.pack.until))
    for at, token in zip(micro.targets.at.tolist(), micro.targets.token.tolist(), strict=True):
        seen = (tokens <= at) & (micro.pack.until > at)
        yield micro.input_ids[0, seen].tolist(), token


def test_joined_steps_share_what_begins_alike(steps: Steps) -> None:
    spared = sum(steps[number].spared for number in range(len(steps)))
    assert (spared > 0) == (steps.mixture.groups is not None)


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_the_ranks_shares_make_the_global_step(steps: Steps, ranks: int) -> None:
    for number in range(len(steps)):
        whole = steps[number]
        shares = [replace(steps, share=Share(rank, ranks))[number] for rank in range(ranks)]
        assert sorted(pair for share in shares for pair in learned(share)) == learned(whole)
        assert all(np.array_equal(share.rows, whole.rows) for share in shares)
        assert sum(share.weight for share in shares) == whole.weight
        # A tree that is divided between processes is read by both where it begins.
        assert sum(share.tokens + share.spared for share in shares) == whole.tokens + whole.spared
        assert len({share.division for share in shares}) == 1
        assert sum(share.used for share in shares) == whole.used == len(whole.rows)


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
@pytest.mark.parametrize("first", [0, 2])
def test_workers_read_the_same_steps_in_order(steps: Steps, workers: int, first: int) -> None:
    with_workers = [(step.number, learned(step)) for step in read_steps(steps, first, workers, pin=False)]
    assert with_workers == [(number, learned(steps[number])) for number in range(first, len(steps))]


def test_the_last_step_takes_what_is_left(steps: Steps) -> None:
    assert [len(steps[number].rows) for number in range(len(steps))] == [4, 4, 4, 4, 4, 4, 1]


def test_steps_cross_epochs_without_a_gap(steps: Steps) -> None:
    seen = np.concatenate([steps[number].rows for number in range(len(steps))])
    assert seen.tolist() == steps.mixture.order(3).at(0, 25).tolist()


def test_a_micro_batch_keeps_to_its_tokens(steps: Steps) -> None:
    for micro in (micro for number in range(len(steps)) for micro in steps[number].micro):
        assert micro.input_ids.numel() <= 150


def test_a_rank_without_rows_still_has_a_batch(steps: Steps) -> None:
    share = replace(steps, share=Share(3, 4))[len(steps) - 1]
    assert len(share.micro) == 1
    assert (share.weight, share.tokens, share.used) == (0, 0, 0)


@pytest.mark.parametrize(
    ("every", "due"),
    [
        (Duration(2, "steps"), [1, 3, 5]),
        (Duration(1, "epochs"), [2, 4]),
        (Duration(0.5, "epochs"), [1, 2, 3, 4, 6]),
        (Duration(2, "epochs"), [4]),
    ],
)
def test_an_interval_is_due_with_the_step_that_reaches_it(steps: Steps, every: Duration, due: list[int]) -> None:
    assert [number for number in range(len(steps)) if steps.due(every, number)] == due


def borders(size: str, total: str, lengths: list[int]) -> tuple[int, list[int] | None]:
    """Plans a stage on rows of these lengths in file order."""
    asked: Iterator[int] = iter(range(10_000))

    def length(index: int) -> int:
        assert next(asked) < 5_000, "planning doesn't end"
        return lengths[index % len(lengths)]

    limit, starts = plan(Duration.parse(size), Duration.parse(total), len(lengths), length)
    return limit, None if starts is None else starts.tolist()


@pytest.mark.parametrize(
    ("size", "total", "limit", "starts"),
    [
        ("2 examples", "2 epochs", 6, None),
        ("2 examples", "0.5 epochs", 2, None),
        ("2 examples", "5 steps", 10, None),
        ("2 examples", "5 examples", 5, None),
        ("2 examples", "20 tokens", 3, [0, 2, 3]),
        ("2 examples", "21 tokens", 4, [0, 2, 4]),
        ("10 tokens", "1 epoch", 3, [0, 2, 3]),
        ("10 tokens", "2 epochs", 6, [0, 2, 3, 5, 6]),
        ("10 tokens", "3 steps", 5, [0, 2, 3, 5]),
        ("10 tokens", "1 example", 1, [0, 1]),
        ("10 tokens", "12 tokens", 3, [0, 2, 3]),
        ("1000 tokens", "1 epoch", 3, [0, 3]),
    ],
)
def test_a_plan_has_the_steps_that_its_duration_asks_for(
    size: str, total: str, limit: int, starts: list[int] | None
) -> None:
    assert borders(size, total, [4, 6, 10]) == (limit, starts)


def test_a_row_longer_than_a_step_is_a_step_of_its_own() -> None:
    assert borders("10 tokens", "1 epoch", [4, 50, 4]) == (3, [0, 1, 2, 3])


@pytest.mark.parametrize(("size", "total"), [("10 tokens", "3 steps"), ("10 tokens", "99 tokens")])
def test_planning_without_a_readable_row_ends_in_an_error(size: str, total: str) -> None:
    with pytest.raises(DataError, match="no row of the recipe can be encoded"):
        borders(size, total, [0, 0, 0])


def test_a_row_that_fails_is_named_and_not_replaced(steps: Steps, tmp_path: Path) -> None:
    lab = Lab.make(tmp_path, rows=6)
    (tmp_path / "images" / "green.png").write_bytes(b"no picture")
    run = lab.run("a")
    mixture = run.mixture(run.config.stages[0].recipe)
    encoded, _, lost = steps.encoding.read(mixture, mixture.train)
    assert [row.id for row in encoded.values()] == [f"rows.jsonl:{n}" for n in (1, 3, 4, 5, 6)]
    assert [(row.row, row.fate) for row in lost] == [("rows.jsonl:2", "failed")]
    assert "green.png" in lost[0].reason
