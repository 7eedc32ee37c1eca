import random
from collections import Counter

from mmsft.data.split import draw


def test_rows_that_share_something_are_on_one_side_through_any_number_of_others() -> None:
    rng = random.Random(0)
    rows = [[b"%d" % rng.randrange(3000) for _ in range(rng.choice([1, 1, 1, 2, 3]))] for _ in range(1500)]
    held = draw(rows, 0, 0.3).held_out
    sides: dict[bytes, set[bool]] = {}
    for shown, out in zip(rows, held, strict=True):
        for item in shown:
            sides.setdefault(item, set()).add(bool(out))
    assert all(len(side) == 1 for side in sides.values())
    assert max(Counter(item for shown in rows for item in shown).values()) > 1
    assert 0.2 < held.mean() < 0.4  # of 1,500 rows in some hundreds of sets


def test_a_chain_of_rows_is_one_set() -> None:
    chain = [[b"%d" % number, b"%d" % (number + 1)] for number in range(50)]
    assert draw([*chain, [b"apart"]], 0, 0.5).largest == 50
    for seed in range(20):
        assert len(set(draw(chain, seed, 0.5).held_out.tolist())) == 1
    assert len({bool(draw(chain, seed, 0.5).held_out[0]) for seed in range(20)}) == 2


def test_neither_the_order_of_rows_nor_of_what_they_show_decides() -> None:
    rows = [[b"%d" % (number % 40), b"%d" % (number * 7 % 90)] for number in range(60)]
    held = draw(rows, 3, 0.5).held_out
    backwards = draw([shown[::-1] for shown in rows[::-1]], 3, 0.5).held_out
    assert held.tolist() == backwards[::-1].tolist()
    assert 0 < held.sum() < 60
    assert draw(rows, 4, 0.5).held_out.tolist() != held.tolist()


def test_a_row_that_shows_nothing_is_not_held_out() -> None:
    assert draw([[], [b"a"], []], 0, 1.0).held_out.tolist() == [False, True, False]


def test_the_part_that_is_held_out_is_near_the_fraction_whatever_the_size_of_the_sets() -> None:
    for size in (1, 5):
        rows = [[b"%d %d" % (number, item) for item in range(size)] for number in range(4000)]
        assert abs(draw(rows, 1, 0.1).held_out.mean() - 0.1) < 0.02  # four standard deviations of 4,000 draws
