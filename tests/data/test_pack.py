from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsft.data.pack import Padded, _first_fit, bins, cut, deal, filled, padded
from mmsft.data.prefix import Prefix
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


@given(SIZES, st.integers(100, 300))
def test_first_fit_is_first_fit(sizes: list[int], capacity: int) -> None:
    falling = sorted(range(len(sizes)), key=lambda item: -sizes[item])
    slow: list[list[int]] = []
    for item in falling:
        free = (some for some in slow if sum(sizes[other] for other in some) + sizes[item] <= capacity)
        into = next(free, None)
        if into is None:
            slow.append(into := [])
        into.append(item)
    assert _first_fit(sizes, falling, capacity, [Prefix(-1, 0)] * len(sizes)) == slow


@given(SIZES, st.integers(100, 300), st.integers(1, 5), st.randoms(use_true_random=False))
def test_what_several_begin_with_is_in_a_bin_once(sizes: list[int], capacity: int, shares: int, rng: Random) -> None:
    lengths = [rng.randint(1, 50) for _ in range(3)]
    begins = [Prefix(n, lengths[n]) if n >= 0 and lengths[n] < size else Prefix(-1, 0)
              for size in sizes for n in [rng.randint(-1, 2)]]  # fmt: skip
    found = bins(sizes, capacity, shares, begins)
    assert sorted(item for some in found for item in some) == list(range(len(sizes)))
    assert all(filled(some, sizes, begins) <= capacity for some in found)
    assert len(found) % shares == 0


def test_a_long_prefix_is_in_as_few_bins_as_it_can() -> None:
    # Eight questions to each of two lists of tools: by themselves each would fill half a bin.
    begins = [Prefix(item % 2, 900) for item in range(16)]
    found = bins([1000] * 16, 2048, begins=begins)
    assert [filled(some, [1000] * 16, begins) for some in found] == [1700, 1700]


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


@pytest.mark.parametrize("shares", [1, 2, 8])
def test_shares_of_packs_are_alike(shares: int) -> None:
    sizes = alpaca_like(512, 1)
    filled = [sum(sizes[item] for item in some) for some in bins(sizes, 2048, shares)]
    dealt = deal(filled, shares)
    loads = [sum(filled[place] for place in places) for places in dealt]
    assert sum(loads) == sum(sizes)
    assert len({len(places) for places in dealt}) == 1
    # No process waits for another more than a hundredth of the step; a median item is a fiftieth of a bin.
    assert min(loads) > 0.99 * max(loads)


SHAPES = st.lists(
    st.builds(Padded, rows=st.integers(1, 4), width=st.integers(1, 30), prompts=st.just(1), read=st.integers(0, 30)),
    max_size=40,
)


@given(SHAPES, st.integers(1, 300), st.integers(1, 5))
def test_each_item_is_cut_into_one_padded_batch_and_none_is_over_full(
    shapes: list[Padded], capacity: int, shares: int
) -> None:
    found = cut(shapes, capacity, shares)
    assert sorted(item for some in found for item in some) == list(range(len(shapes)))
    for some in found:
        assert len(some) == 1 or padded(shapes[item] for item in some).size <= capacity
    assert all(found)


@given(SHAPES, st.integers(1, 5))
def test_no_share_is_idle_while_another_has_a_batch_to_divide(shapes: list[Padded], shares: int) -> None:
    found = cut(shapes, 10_000, shares)
    assert len(found) >= min(shares, len(shapes))
    dealt = deal([padded(shapes[item] for item in some).size for some in found], shares)
    assert sum(map(bool, dealt)) >= min(shares, len(shapes))


@given(st.lists(st.integers(0, 100), max_size=40), st.integers(1, 6))
def test_no_share_is_dealt_more_than_its_part_or_nothing_where_there_is_enough(costs: list[int], shares: int) -> None:
    dealt = deal(costs, shares)
    assert sorted(item for some in dealt for item in some) == list(range(len(costs)))
    assert max(map(len, dealt)) <= -(-len(costs) // shares)
    assert sum(map(bool, dealt)) == min(shares, len(costs))


@pytest.mark.parametrize("shares", [1, 2, 8])
def test_padding_is_little_and_dealt_out_evenly(shares: int) -> None:
    sizes = alpaca_like(512, 0)
    shapes = [Padded(1, size) for size in sizes]
    costs = [padded(shapes[item] for item in some).size for some in cut(shapes, 2048, shares)]
    assert max(costs) <= 2048
    # Threads put into packs as if nothing were padded, and then padded in each: 1.68 times.
    assert sum(costs) < 1.06 * sum(sizes)
    loads = [sum(costs[place] for place in places) for places in deal(costs, shares)]
    # The busiest process has at most three hundredths more to do than its part.
    assert max(loads) < 1.03 * sum(loads) / shares


def test_both_sides_of_an_encoder_decoder_are_padded_little() -> None:
    rng = np.random.default_rng(0)
    sides = [rng.lognormal(mean, 0.75, 512).clip(4, 1000).astype(int).tolist() for mean in (3.4, 3.9)]
    shapes = [Padded(1, written, 1, read) for read, written in zip(*sides, strict=True)]
    size = sum(padded(shapes[item] for item in some).size for some in cut(shapes, 2048))
    # Sorted by the prompts alone 1.8 times; in packs as if nothing were padded, 2.1.
    assert size < 1.45 * sum(map(sum, sides))
