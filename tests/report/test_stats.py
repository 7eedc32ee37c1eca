"""The page of figures: every row is in its histogram, and the figures are those of the terminal."""

from hypothesis import given
from hypothesis import strategies as st

from mmsft.report.stats import histogram, stats_page
from tests.makers import Command, Lab


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=300))
def test_every_row_is_in_one_column(lengths: list[int]) -> None:
    drawn = histogram("rows", lengths)
    counts = [int(column.label.split(": ")[1].split(" ")[0].replace(",", "")) for column in drawn.columns]
    assert sum(counts) == len(lengths)
    assert max(column.height for column in drawn.columns) == 120
    assert (drawn.least, drawn.most) == (min(lengths), max(lengths))


def test_the_command_writes_the_figures_of_the_terminal(lab: Lab, mmsft: Command) -> None:
    file = lab.write(lab.config("a"))
    out = lab.folder / "stats.html"
    assert mmsft("data", "stats", file, "--html", out).code == 0
    page, said = out.read_text(encoding="utf-8"), mmsft("data", "stats", file).out
    assert "<td>24</td>" in page
    assert "2,048 tokens are" in page
    assert "packs of 2,048 tokens" in said


def test_a_source_with_a_hostile_name_is_text() -> None:
    source = {"name": "<b>x</b>", "rows": 1, "lost": 0, "duplicates": 0, "tokens": 3, "learned": 1, "media": {}}
    stage = {"name": "s", "sources": [{**source, "media_tokens": {}}], "packs": {}}
    assert "<b>" not in stats_page("t", [stage], {"<b>x</b>": [3]})
