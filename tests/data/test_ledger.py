import pytest

from mmsft.data.ledger import Entry, Fate, Ledger, reasons
from mmsft.errors import DataError, MmsftError


def lost(count: int, fate: Fate = "failed", known: bool = False) -> list[Entry]:
    return [
        Entry(f"a.jsonl:{number}", fate, f"a.jsonl:{number}: broken", "a", known=known)
        for number in range(1, count + 1)
    ]


def ledger(rows: int, budget: float, **counts: int) -> Ledger:
    return Ledger(["a"], rows, budget, {"a": counts})


def add(to: Ledger, used: int, entries: list[Entry]) -> None:
    to.add(used + len(entries), {(0, "used"): used}, entries)


def test_every_row_is_counted_once_and_by_its_source() -> None:
    both = Ledger(["a", "b"], 100, 0.1)
    both.add(9, {(0, "used"): 5, (1, "trimmed"): 2}, lost(2))
    both.add(4, {(1, "used"): 3}, [Entry("b:1", "dropped", "b:1: long", "b")])
    assert both.counts == {"a": {"used": 5, "failed": 2}, "b": {"trimmed": 2, "used": 3, "dropped": 1}}


@pytest.mark.parametrize("used", [4, 6])
def test_rows_that_do_not_add_up_end_the_run(used: int) -> None:
    with pytest.raises(MmsftError, match=rf"of 7 rows {used} are learned from and 2 are lost"):
        ledger(100, 1.0).add(7, {(0, "used"): used}, lost(2))


def test_what_is_said_of_rows_that_are_used_counts_for_nothing() -> None:
    noted = ledger(100, 0.0)
    noted.add(2, {(0, "used"): 1, (0, "trimmed"): 1}, [Entry("a:1", "trimmed", "a:1: cut", "a")])
    assert noted.counts == {"a": {"used": 1, "trimmed": 1}}


@pytest.mark.parametrize(("count", "stops"), [(10, False), (11, True)])
def test_the_budget_is_a_part_of_the_rows_of_an_epoch(count: int, stops: bool) -> None:
    new = ledger(100, 0.1)
    add(new, 20, [])
    if stops:
        with pytest.raises(DataError, match=r"11 of 31 rows seen are lost.*10\.00% of 100 rows.*a\.jsonl:11: broken"):
            add(new, 0, lost(count))
    else:
        add(new, 0, lost(count))


def test_the_budget_does_not_count_what_a_quarantine_named() -> None:
    new = ledger(100, 0.1)
    add(new, 20, lost(50, known=True))
    add(new, 0, lost(10))
    with pytest.raises(DataError, match="11 of 81 rows seen are lost"):
        add(new, 0, lost(1))
    assert new.counts["a"] == {"used": 20, "failed": 61, "known": 50}


def test_a_second_epoch_has_a_budget_of_its_own() -> None:
    new = ledger(10, 0.1)
    add(new, 9, lost(1))
    add(new, 9, lost(1))
    assert new.counts["a"]["failed"] == 2


@pytest.mark.parametrize("known", [False, True])
def test_a_large_budget_does_not_hide_that_nothing_is_learned(known: bool) -> None:
    with pytest.raises(DataError, match="100 of 100 rows seen are lost, so that nothing is learned"):
        add(ledger(1_000_000, 0.01), 0, lost(100, known=known))
    with pytest.raises(DataError, match="nothing is learned"):
        add(ledger(4, 1.0), 0, lost(4, known=known))


def test_a_first_row_that_is_broken_stops_nothing() -> None:
    new = ledger(8, 0.5)
    for used, broken in [(0, 1), (0, 1), (1, 0)]:
        add(new, used, lost(broken))
    assert new.counts["a"] == {"used": 1, "failed": 2}


def test_a_resumed_ledger_goes_on_counting() -> None:
    with pytest.raises(DataError, match="2 of 7 rows"):
        add(ledger(10, 0.1, used=5, failed=1), 0, lost(1))
    known = ledger(10, 0.1, used=5, failed=1, known=1)
    add(known, 0, lost(1))
    assert known.counts["a"] == {"used": 5, "failed": 2, "known": 1}


def test_reasons_that_read_alike_are_one_by_source_and_fate_and_a_row_that_comes_again_counts_once() -> None:
    entries = [
        Entry("a:1", "failed", "a:1: <image: /x/cat.png>: no such file", "a"),
        Entry("a:2", "failed", "a:2: 'turn' 3 is empty", "a"),
        Entry("a:9", "failed", "a:9: <image: /x/dog.png>: no such file", "a"),
        Entry("a:9", "failed", "a:9: <image: /x/dog.png>: no such file", "a"),
        Entry("a:1", "dropped", "a:1: <image: /x/cat.png>: no such file", "a"),
        Entry("b:1", "failed", "b:1: <image: /x/cat.png>: no such file", "b"),
        Entry("a:5", "trimmed", "2 of its media, <image: /x y/cat.png> 64 → 16: a:5: 99 tokens", "a"),
        Entry("a:6", "trimmed", "3 of its media, <image: /x y/dog.png> 64 → 36: a:6: 88 tokens", "a"),
        Entry("a:4", "used", "a:4: <image: /x/cat.png>: no such file", "a"),
    ]
    found = [(reason.source, reason.fate, reason.rows, reason.first.partition(":")[0]) for reason in reasons(entries)]
    assert found[0] == ("a", "failed", 2, "a")
    assert found[1][:3] == ("a", "trimmed", 2)
    assert sorted(found[2:]) == [("a", "dropped", 1, "a"), ("a", "failed", 1, "a"), ("b", "failed", 1, "b")]
    assert reasons(entries)[0].first == entries[0].reason
