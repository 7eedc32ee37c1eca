"""How much of each source an epoch has, in what order, and that no row is lost or favoured over epochs."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from mmsft.config import MixConfig, RecipeConfig, SourceConfig
from mmsft.data.mix import Item, draws, whole
from mmsft.data.order import Order
from mmsft.errors import ConfigError
from tests.makers import opened, write_rows


def items(*sizes: int, **settings: list[Any]) -> list[Item]:
    return [
        Item(SourceConfig(path="x", **{name: values[index] for name, values in settings.items()}), [size], [])
        for index, size in enumerate(sizes)
    ]


def test_by_size_each_row_comes_as_often_as_it_is_repeated() -> None:
    assert draws(MixConfig(), items(10, 20)) == [10, 20]
    assert draws(MixConfig(), items(10, 20, repeat=[2.5, 0.5])) == [25, 10]


def test_by_weight_an_epoch_has_the_stated_parts() -> None:
    mix = MixConfig(by="weight", rows=100)
    assert draws(mix, items(10, 5000, weight=[3.0, 1.0])) == [75, 25]


def test_weights_in_tokens_are_parts_of_the_tokens() -> None:
    short, long = (SourceConfig(path="x", weight=1.0) for _ in range(2))
    found = draws(
        MixConfig(by="weight", unit="tokens", rows=110), [Item(short, [50], [10.0]), Item(long, [50], [100.0])]
    )
    assert found == pytest.approx([100, 10])


def test_temperature_two_is_the_square_root_of_the_size() -> None:
    """InstructBLIP's sampling, arXiv 2305.06500: the odds of a set of S rows go with √S."""
    found = draws(MixConfig(by="temperature", temperature=2.0, rows=400), items(100, 900))
    assert found == pytest.approx([100, 300])


def test_proportional_counts_no_source_for_more_than_the_maximum() -> None:
    """FLAN's mixing, with its maximum of 3,000."""
    found = draws(MixConfig(by="proportional", maximum=3000, rows=1000), items(1000, 3000, 30_000))
    assert found == pytest.approx([1000 / 7, 3000 / 7, 3000 / 7])


def test_a_cap_cuts_a_source_and_leaves_the_others() -> None:
    assert draws(MixConfig(), items(10, 2000, cap=[None, 100])) == [10, 100]


def test_a_nested_recipe_counts_as_one_source_and_keeps_its_own_parts() -> None:
    nested = Item(SourceConfig(path="x", weight=1.0), [30, 10], [])
    alone = Item(SourceConfig(path="x", weight=1.0), [7], [])
    assert draws(MixConfig(by="weight", rows=80), [nested, alone]) == pytest.approx([30, 10, 40])


@given(st.lists(st.floats(1, 1000), min_size=1, max_size=8))
def test_shares_become_whole_with_the_same_sum_and_each_by_less_than_one(shares: list[float]) -> None:
    counts = whole(shares, ["x"] * len(shares))
    assert abs(int(counts.sum()) - sum(shares)) <= 0.5
    assert all(abs(count - share) <= 1 for count, share in zip(counts, shares, strict=True))


def test_a_source_whose_part_is_less_than_a_row_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="an epoch of 10 rows has no row of tiny"):
        whole([9.9, 0.1], ["large", "tiny"])


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    data=st.data(),
    sequential=st.booleans(),
    grouped=st.booleans(),
)
def test_over_epochs_no_row_comes_more_than_once_oftener_than_another_of_its_source(
    sizes: list[int], data: st.DataObject, sequential: bool, grouped: bool
) -> None:
    counts = [data.draw(st.integers(0, 30)) for _ in sizes]
    counts[0] = max(counts[0], 1)
    rows = sum(sizes)
    groups = np.arange(rows) // 2 if grouped else None
    order = Order(data.draw(st.integers(0, 9)), np.array(sizes), np.array(counts), groups, sequential)
    epochs = 3
    seen = order.at(0, epochs * order.rows)
    times = Counter(seen.tolist())
    first = 0
    for size, count in zip(sizes, counts, strict=True):
        own = [times[row] for row in range(first, first + size)]
        assert sum(own) == epochs * count
        assert max(own) - min(own) <= 1
        first += size
    start = data.draw(st.integers(0, len(seen)))
    assert order.at(start, len(seen)).tolist() == seen[start:].tolist()


def test_each_epoch_has_the_same_number_of_each_source() -> None:
    order = Order(1, np.array([7, 100]), np.array([20, 10]))
    for epoch in range(12):
        some = order.at(epoch * 30, (epoch + 1) * 30)
        assert int((some < 7).sum()) == 20


def test_one_source_after_the_other_each_shuffled() -> None:
    order = Order(1, np.array([50, 50]), np.array([50, 50]), None, sequential=True)
    seen = order.at(0, 100)
    assert sorted(seen[:50]) == list(range(50)) != seen[:50].tolist()
    assert sorted(seen[50:]) == list(range(50, 100))


def test_rows_that_begin_alike_stay_together_though_a_source_is_drawn_in_part() -> None:
    groups = np.arange(400) // 10
    order = Order(3, np.array([200, 200]), np.array([100, 300]), groups)
    seen = order.at(0, 400)
    runs = 1 + int((groups[seen][1:] != groups[seen][:-1]).sum())
    assert runs <= 40 + 2  # of 10 rows each, and what the ends of two epochs cut


def test_a_row_that_comes_twice_in_an_epoch_does_not_stand_beside_itself() -> None:
    groups = np.arange(40) // 4
    order = Order(5, np.array([40]), np.array([80]), groups)
    seen = order.at(0, 80)
    blocks = [tuple(sorted(seen[at : at + 4])) for at in range(0, 80, 4)]
    assert Counter(blocks) == {tuple(range(at, at + 4)): 2 for at in range(0, 40, 4)}


def file(folder: Path, name: str, count: int) -> str:
    rows = [{"instruction": f"{name} {number}", "output": "a " * (1 + len(name))} for number in range(count)]
    return str(write_rows(folder / f"{name}.jsonl", rows))


def test_a_recipe_nested_in_a_recipe_brings_its_sources_its_mix_and_what_it_holds_out(tmp_path: Path) -> None:
    inner = {
        "sources": [
            {"path": file(tmp_path, "b", 30), "weight": 3},
            {"path": file(tmp_path, "c", 90), "weight": 1},
            {"path": file(tmp_path, "d", 5), "weight": 1},
        ],
        "mix": {"by": "weight", "rows": 40},
        "validation": {"source": "d.jsonl"},
    }
    sources = [{"path": file(tmp_path, "a", 20)}, {"recipe": inner, "name": "inner", "repeat": 2}]
    mixture = opened({"sources": sources})
    assert [(source.name, rows, count) for source, rows, count in mixture.drawn()] == [
        ("a.jsonl", 20, 20),
        ("inner/b.jsonl", 30, 60),
        ("inner/c.jsonl", 90, 20),
    ]
    assert mixture.epoch == 100
    assert {mixture.sources[int(source)].name for source, _ in mixture.held_out} == {"inner/d.jsonl"}
    assert len(mixture.held_out) == 5


def test_weights_in_tokens_are_measured_on_the_sources(tmp_path: Path) -> None:
    one, other = file(tmp_path, "a", 100), file(tmp_path, "abcdefghi", 100)  # replies of 2 and 10 words
    sources = [{"path": one, "weight": 1}, {"path": other, "weight": 1}]
    mixture = opened({"sources": sources, "mix": {"by": "weight", "unit": "tokens", "rows": 160}})
    counts = [count for _, _, count in mixture.drawn()]
    assert counts == [120, 40]  # 4 and 12 words a row


def test_a_nested_recipe_that_writes_otherwise_is_refused(tmp_path: Path) -> None:
    inner = {"sources": [{"path": file(tmp_path, "b", 3)}], "learn": "all"}
    with pytest.raises(ConfigError, match=r"its recipe states learn: all \(not assistant\)"):
        opened({"sources": [{"recipe": inner, "name": "inner"}]})


def test_an_order_inside_of_a_nested_recipe_is_refused_since_it_would_mean_nothing(tmp_path: Path) -> None:
    inner = {"sources": [{"path": file(tmp_path, "b", 3)}], "mix": {"order": "sequential"}}
    with pytest.raises(ConfigError, match=r"has `order: sequential`.*state the order there"):
        opened({"sources": [{"recipe": inner, "name": "inner"}]})


@pytest.mark.parametrize("idle", [{"repeat": 2}, {"cap": 3}, {"weight": 1}])
def test_held_out_rows_are_not_mixed(idle: dict[str, Any]) -> None:
    recipe = {"sources": [{"path": "a"}], "validation": {"file": {"path": "b", **idle}}}
    with pytest.raises(ValidationError, match=f"each once; leave out {next(iter(idle))}"):
        RecipeConfig.model_validate(recipe)


def test_held_out_rows_come_from_a_file_and_not_from_a_recipe() -> None:
    held_out = {"name": "n", "recipe": {"sources": [{"path": "b"}]}}
    with pytest.raises(ValidationError, match="leave out recipe"):
        RecipeConfig.model_validate({"sources": [{"path": "a"}], "validation": {"file": held_out}})


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ({"sources": [{"path": "a"}], "mix": {"by": "weight"}}, "needs a weight for each source; a has none"),
        ({"sources": [{"path": "a", "weight": 1}]}, "a has a weight, which counts with `by: weight` only"),
        ({"sources": [{"path": "a", "weight": 0}], "mix": {"by": "weight"}}, "greater than 0"),
        ({"sources": [{"path": "a", "repeat": 2}], "mix": {"by": "temperature", "temperature": 2}}, "has `repeat`"),
        ({"sources": [{"path": "a"}], "mix": {"temperature": 2}}, "it is for `by: temperature`"),
        ({"sources": [{"path": "a"}], "mix": {"by": "temperature"}}, "`by: temperature` needs it"),
        ({"sources": [{"path": "a"}], "mix": {"by": "proportional"}}, "`by: proportional` needs it"),
        ({"sources": [{"path": "a"}], "mix": {"unit": "tokens"}}, "tokens are the unit of weights"),
        ({"sources": [{"path": "a"}], "mix": {"rows": 5}}, "by size, an epoch has all rows"),
        ({"sources": [{}]}, "state a path, or a recipe"),
        ({"sources": [{"recipe": {"sources": [{"path": "a"}]}}]}, "give the source a `name`"),
        ({"sources": [{"recipe": {"sources": [{"path": "a"}]}, "name": "n", "path": "b"}]}, "leave out path"),
        ({"sources": [{"path": "a", "templates": {"file": "t"}, "format": "llava"}]}, "leave format and options out"),
    ],
)
def test_settings_that_mean_nothing_are_refused(recipe: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        RecipeConfig.model_validate(recipe)
