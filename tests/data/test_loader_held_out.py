from pathlib import Path

import numpy as np
import pytest

from mmsft.data.encoding import Share
from mmsft.data.ledger import Booked, Entry
from mmsft.data.loader import held_out_batches, sample_of
from mmsft.data.mixture import Mixture
from mmsft.eval.loss import held_out_loss
from mmsft.parallel import Ranks
from mmsft.run import Run
from mmsft.types import Batch
from tests.makers import Lab, write_rows


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab.make(tmp_path)


def run_of(lab: Lab, join: str | None) -> Run:
    """Holds out a source: 30 questions on two pictures, or on none."""
    write_rows(lab.folder / "held.jsonl", lab.rows(30, pictures=3))
    recipe = lab.recipe(join=join, validation={"source": "held"})
    recipe["sources"].append({"path": str(lab.folder / "held.jsonl"), "format": "llava", "name": "held"})
    return lab.run(f"out-{join}", [lab.stage(recipe=recipe)])


def batches(run: Run, ranks: int, window: int) -> tuple[list[Batch], list[Entry]]:
    [stage] = run.config.stages
    mixture, encoding = run.mixture(stage.recipe), run.encoding(stage)
    booked = Booked()
    samples = [sample_of(mixture, mixture.held_out, Share(rank, ranks)) for rank in range(ranks)]
    assert len({sample.division for sample in samples}) == 1
    assert sorted(np.concatenate([sample.pairs for sample in samples]).tolist()) == sorted(mixture.held_out.tolist())
    found = [held_out_batches(mixture, encoding, sample, booked, window) for sample in samples]
    whole = [batch for some in found for batch in some]
    assert booked.learned.total() + len(booked.entries) == len(mixture.held_out)
    return whole, booked.entries


@pytest.mark.parametrize(("ranks", "window"), [(1, 64), (1, 7), (2, 64), (3, 5)])
def test_held_out_rows_that_begin_alike_are_joined_and_their_loss_stays(lab: Lab, ranks: int, window: int) -> None:
    joined, lost = batches(run_of(lab, "shared_prefix"), ranks, window)
    run = run_of(lab, None)
    apart, _ = batches(run, ranks, window)
    assert lost == []
    sizes = [sum(int(batch.mask.sum()) for batch in some) for some in (joined, apart)]
    # Twenty questions on pictures, with a window or a process now and then between those on one.
    assert sizes[0] < 0.85 * sizes[1]
    model, alone = run.model(), Ranks("fp32")
    losses = [held_out_loss(model, some, alone, 2).loss for some in (joined, apart)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)  # fp32 sums in another order


def test_processes_that_read_other_beginnings_divide_the_rows_otherwise(lab: Lab) -> None:
    run = run_of(lab, "shared_prefix")
    [stage] = run.config.stages
    mixture = run.mixture(stage.recipe)
    before = sample_of(mixture, mixture.held_out, Share(0, 2)).division
    file = lab.folder / "held.jsonl"
    file.write_bytes(file.read_bytes().replace(b"green.png", b"other.png", 1))
    other = Mixture(stage.recipe, run.measures(stage.recipe))
    assert sample_of(other, other.held_out, Share(1, 2)).division != before


@pytest.mark.parametrize("join", [None, "shared_prefix"])
def test_processes_that_hold_out_other_rows_divide_them_otherwise(lab: Lab, join: str | None) -> None:
    run = run_of(lab, join)
    mixture = run.mixture(run.config.stages[0].recipe)
    one, other = (sample_of(mixture, pairs, Share(0, 2)) for pairs in (mixture.held_out, mixture.held_out[::-1]))
    assert one.division != other.division
