import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsft.data.order import Order, chain, permutation


@given(st.integers(0, 5), st.integers(1, 50), st.integers(0, 120), st.integers(0, 60))
def test_an_order_does_not_depend_on_where_reading_begins(seed: int, rows: int, start: int, count: int) -> None:
    whole = Order.of(seed, rows).at(0, start + count)
    assert Order.of(seed, rows).at(start, start + count).tolist() == whole[start:].tolist()


@given(st.integers(0, 5), st.integers(1, 50), st.integers(0, 3))
def test_an_epoch_has_each_row_once(seed: int, rows: int, epoch: int) -> None:
    assert sorted(Order.of(seed, rows).at(epoch * rows, (epoch + 1) * rows)) == list(range(rows))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {tuple(permutation(seed, epoch, 40)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_an_order_is_the_same_on_every_machine() -> None:
    assert Order.of(7, 5).at(3, 9).tolist() == GOLDEN


GOLDEN = [1, 4, 0, 4, 3, 2]
"""Written down once: a checkpoint of an older version must find the rows where it left them."""


def test_the_chain_tells_the_rows_and_their_order() -> None:
    a, b = np.array([1, 2]), np.array([3])
    assert chain(chain("", a), b) == chain(chain("", a), b)
    assert len({chain(chain("", a), b), chain(chain("", b), a), chain("", a), chain("", np.array([1, 3]))}) == 4


@pytest.mark.parametrize("rows", [1, 3])
def test_a_step_may_span_several_epochs(rows: int) -> None:
    assert len(Order.of(0, rows).at(0, 10)) == 10


@given(st.integers(0, 5), st.lists(st.integers(0, 9), min_size=1, max_size=40), st.integers(0, 2))
def test_groups_stay_together_and_an_epoch_still_has_each_row_once(seed: int, drawn: list[int], epoch: int) -> None:
    groups = np.unique(drawn, return_inverse=True)[1].astype(np.int64)
    rows = Order.of(seed, len(drawn), groups).at(epoch * len(drawn), (epoch + 1) * len(drawn))
    assert sorted(rows) == list(range(len(drawn)))
    runs = [number for number, before in zip(groups[rows], [-1, *groups[rows]], strict=False) if number != before]
    assert len(runs) == len(set(runs))


def test_groups_and_the_rows_in_them_are_shuffled_anew_each_epoch() -> None:
    groups = np.repeat(np.arange(10), 5)
    order = Order.of(3, 50, groups)
    epochs = [order.at(50 * epoch, 50 * (epoch + 1)) for epoch in range(3)]
    assert len({tuple(groups[rows][::5]) for rows in epochs}) == 3
    assert len({tuple(row for row in rows if groups[row] == 0) for rows in epochs}) > 1


def test_an_order_of_groups_is_the_same_on_every_machine() -> None:
    groups = np.array([0, 1, 0, 2, 1, 0, 2, 3])
    assert Order.of(7, 8, groups).at(3, 13).tolist() == GROUPED


GROUPED = [2, 0, 5, 1, 4, 0, 2, 5, 7, 4]


@pytest.mark.parametrize("together", [1, 8])
def test_an_epoch_is_held_in_4_bytes_a_row_and_no_other_epoch_beside_it(together: int) -> None:
    rows = 400_000
    order = Order.of(0, rows, np.arange(rows, dtype=np.int32) // together if together > 1 else None)
    Order.of(1, 1).at(0, 1)  # nothing else is held
    tracemalloc.start()
    for epoch in range(3):
        order.at(epoch * rows, epoch * rows + 1)
        held = tracemalloc.get_traced_memory()[0]
        # Beside the rows' numbers a few objects.
        assert held < 4.1 * rows
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The epoch before, this one, and what sorts it: 8 bytes for a key, 4 each for a row, its place and its index.
    assert peak < 32 * rows


def test_large_groups_stand_anywhere() -> None:
    groups = np.array([0] * 30 + list(range(1, 31)))
    starts = [int(np.flatnonzero(groups[Order.of(seed, 60, groups).at(0, 60)] == 0)[0]) for seed in range(60)]
    # Of 31 groups, the large one's place is drawn like any other's.
    assert min(starts) < 5
    assert max(starts) > 25
