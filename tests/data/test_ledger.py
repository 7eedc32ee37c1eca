import pytest

from mmsft.data.ledger import Entry, Fate, Ledger
from mmsft.errors import DataError


def lost(count: int, fate: Fate = "failed") -> list[Entry]:
    return [Entry(f"a.jsonl:{number}", fate, f"a.jsonl:{number}: broken") for number in range(1, count + 1)]


def test_every_row_is_counted_once() -> None:
    ledger = Ledger(100, 0.1)
    ledger.add(5, lost(2))
    ledger.add(3, lost(1, "dropped"))
    assert dict(ledger.counts) == {"used": 8, "failed": 2, "dropped": 1}


@pytest.mark.parametrize(("count", "stops"), [(10, False), (11, True)])
def test_the_budget_is_a_part_of_the_rows_of_an_epoch(count: int, stops: bool) -> None:
    ledger = Ledger(100, 0.1)
    ledger.add(20, [])
    if stops:
        with pytest.raises(DataError, match=r"11 of 31 rows seen are lost.*10\.00% of 100 rows.*a\.jsonl:11: broken"):
            ledger.add(0, lost(count))
    else:
        ledger.add(0, lost(count))


def test_a_second_epoch_has_a_budget_of_its_own() -> None:
    ledger = Ledger(10, 0.1)
    ledger.add(9, lost(1))
    ledger.add(9, lost(1))
    assert ledger.counts["failed"] == 2


def test_a_large_budget_does_not_hide_that_nothing_is_learned() -> None:
    with pytest.raises(DataError, match="100 of 100 rows seen are lost, so that nothing is learned"):
        Ledger(1_000_000, 0.01).add(0, lost(100))
    with pytest.raises(DataError, match="nothing is learned"):
        Ledger(4, 1.0).add(0, lost(4))


def test_a_first_row_that_is_broken_stops_nothing() -> None:
    ledger = Ledger(8, 0.5)
    for used, broken in [(0, 1), (0, 1), (1, 0)]:
        ledger.add(used, lost(broken))
    assert dict(ledger.counts) == {"used": 1, "failed": 2}


def test_a_resumed_ledger_goes_on_counting() -> None:
    ledger = Ledger(10, 0.1, {"used": 5, "failed": 1})
    with pytest.raises(DataError, match="2 of 7 rows"):
        ledger.add(0, lost(1))
