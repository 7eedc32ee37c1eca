"""The page of figures: every row is in its histogram, and the figures are those of the terminal."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsft.report.stats import HIGH, LEFT, drawn, shares, stats_page
from tests.makers import Command, Lab
from tests.report.test_rows import Tags


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=300), st.lists(st.integers(1, 90), max_size=9))
def test_every_row_is_in_the_column_whose_label_names_its_length(lengths: list[int], others: list[int]) -> None:
    plot = drawn({"rows": lengths, "others": others}, limit=4096)
    assert [strip.name for strip in plot.strips] == ["rows", "others"][: 1 + bool(others)]
    for strip, values in zip(plot.strips, (lengths, others), strict=False):
        counted = 0
        for column in strip.columns:
            span, _, count = column.label.partition(": ")
            least, _, most = span.removesuffix(" tokens").replace(",", "").partition(" to ")
            inside = sum(int(least) <= value <= int(most or least) for value in values)
            assert f"{inside:,} rows" == count
            counted += inside
        assert counted == len(values)
        assert max(column.height for column in strip.columns) == HIGH
    places = [x for x, _ in plot.ticks]
    assert places == sorted(places)
    assert plot.ticks[0][1] <= min(lengths + others) <= max(lengths + others) <= plot.ticks[-1][1]


def test_the_axis_doubles_from_line_to_line_and_has_the_limit_in_its_place() -> None:
    plot = drawn({"rows": [3, 30]}, limit=16)
    assert [tokens for _, tokens in plot.ticks] == [2, 4, 8, 16, 32]
    steps = {round(right - left, 6) for (left, _), (right, _) in zip(plot.ticks, plot.ticks[1:], strict=False)}
    assert len(steps) == 1
    assert plot.limit == pytest.approx(plot.ticks[3][0])
    assert drawn({"rows": [3, 30]}, limit=4096).limit is None
    assert drawn({"rows": []}, limit=9).strips == ()


def test_a_sources_bar_is_as_long_as_its_tokens_in_their_parts() -> None:
    first = {"name": "a", "tokens": 100, "learned": 20, "media_tokens": {"image": 30, "audio": 10}}
    second = {"name": "b", "tokens": 50, "learned": 50, "media_tokens": {}}
    one, two = shares([first, second])
    widths = {kind: width for kind, _, width in one.parts}
    assert widths["context"] == pytest.approx(2 * widths["learned"]) == pytest.approx(widths["media"])
    assert two.end - LEFT == pytest.approx((one.end - LEFT) / 2)
    assert one.label == "40 context, 20 learned, 40 media"


def test_the_command_writes_the_figures_of_the_terminal(lab: Lab, mmsft: Command) -> None:
    file = lab.write(lab.config("a"))
    out = lab.folder / "stats.html"
    assert mmsft("data", "stats", file, "--html", out).code == 0
    page, said = Tags(out.read_text(encoding="utf-8")), mmsft("data", "stats", file).out
    [source] = [line.split() for line in said.splitlines() if line.startswith("  rows ")]
    assert set(source[1:7]) <= set(page.said)
    assert "16 image (64 tokens)" in " ".join(page.said).replace("\n", "")
    filled = next(line.split()[4] for line in said.splitlines() if "packs of 2,048" in line)
    assert filled in page.said
    assert all(names.get("scope") for tag, names in page.found if tag == "th")
    assert "stage align" in said


def test_a_source_with_a_hostile_name_is_text() -> None:
    name = "<b>x</b>" * 9
    source = {"name": name, "rows": 1, "lost": 0, "duplicates": 0, "tokens": 3, "learned": 1, "media": {name: 1}}
    stage = {"name": name, "sources": [{**source, "media_tokens": {name: 1}, "length": {"min": 3}}], "packs": {}}
    page = stats_page("t", [stage], {name: [3]}, 9, [name])
    assert "<b>" not in page
    assert "<script" not in page
