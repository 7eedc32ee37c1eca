import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsft.data.pack import bins
from mmsft.errors import DataError

SIZES = st.lists(st.integers(1, 100), max_size=60)


@given(SIZES, st.integers(100, 300), st.integers(1, 5))
def test_each_item_is_in_one_bin_none_is_over_full_and_shares_have_as_many(
    sizes: list[int], capacity: int, shares: int
) -> None:
    found = bins(sizes, capacity, shares)
    assert sorted(item for some in found for item in some) == list(range(len(sizes)))
    assert all(sum(sizes[item] for item in some) <= capacity for some in found)
    assert len(found) % shares == 0


@given(SIZES, st.integers(100, 300))
def test_bins_are_more_than_half_full_on_average(sizes: list[int], capacity: int) -> None:
    # First-fit never opens a bin while the item fits into another, so that no two together would fit into one.
    assert len(bins(sizes, capacity)) <= max(1, 2 * sum(sizes) / capacity)


def alpaca_like(rows: int, seed: int) -> list[int]:
    """Draws lengths as of Alpaca's rows: a median of about 90 tokens, one in a hundred above 500, 2,048 at most."""
    drawn = np.random.default_rng(seed).lognormal(4.5, 0.75, rows)
    return [int(length) for length in drawn.clip(16, 2048)]


@pytest.mark.parametrize("seed", range(5))
def test_lengths_as_of_alpaca_fill_packs_of_2048_to_97_percent(seed: int) -> None:
    sizes = alpaca_like(1024, seed)
    found = bins(sizes, 2048)
    assert sum(len(some) for some in found) == 1024
    assert sum(sizes) / (2048 * len(found)) >= 0.97


@pytest.mark.parametrize("shares", [1, 2, 8])
def test_bins_are_alike(shares: int) -> None:
    sizes = alpaca_like(512, 0)
    filled = [sum(sizes[item] for item in some) for some in bins(sizes, 2048, shares)]
    # The longest item decides by how much two can differ; here items are short beside a bin.
    assert min(filled) > 0.9 * max(filled)


def test_what_does_not_fit_is_an_error_with_both_numbers() -> None:
    with pytest.raises(DataError, match="101 tokens belong together, and a micro-batch has 100"):
        bins([3, 101], 100)


def test_more_shares_than_items_leave_bins_empty() -> None:
    assert sorted(map(len, bins([5, 5], 10, 4))) == [0, 0, 1, 1]
