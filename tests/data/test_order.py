import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsft.data.order import Order, chain, permutation


@given(st.integers(0, 5), st.integers(1, 50), st.integers(0, 120), st.integers(0, 60))
def test_an_order_does_not_depend_on_where_reading_begins(seed: int, rows: int, start: int, count: int) -> None:
    whole = Order(seed, rows).at(0, start + count)
    assert Order(seed, rows).at(start, start + count).tolist() == whole[start:].tolist()


@given(st.integers(0, 5), st.integers(1, 50), st.integers(0, 3))
def test_an_epoch_has_each_row_once(seed: int, rows: int, epoch: int) -> None:
    assert sorted(Order(seed, rows).at(epoch * rows, (epoch + 1) * rows)) == list(range(rows))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {tuple(permutation(seed, epoch, 40)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_an_order_is_the_same_on_every_machine() -> None:
    assert Order(7, 5).at(3, 9).tolist() == GOLDEN


GOLDEN = [1, 4, 0, 4, 3, 2]
"""Written down once: a checkpoint of an older version must find the rows where it left them."""


def test_the_chain_tells_the_rows_and_their_order() -> None:
    a, b = np.array([1, 2]), np.array([3])
    assert chain(chain("", a), b) == chain(chain("", a), b)
    assert len({chain(chain("", a), b), chain(chain("", b), a), chain("", a), chain("", np.array([1, 3]))}) == 4


@pytest.mark.parametrize("rows", [1, 3])
def test_a_step_may_span_several_epochs(rows: int) -> None:
    assert len(Order(0, rows).at(0, 10)) == 10
