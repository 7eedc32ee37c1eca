"""Pages of rows: hostile text stays text, media are inside of the page, and a tree is drawn as it is."""

from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsft.report.rows import Drawn, Piece, bars, medium, rows_page
from mmsft.run.show import drawn_rows
from mmsft.types import Media
from tests.makers import Command, Lab, picture, write_rows

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>&lt;\"'</pre>{{ 7 * 7 }}"


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.said: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.said.append(data)


@given(st.text(max_size=30))
def test_whatever_a_row_says_is_text_and_no_tag(said: str) -> None:
    told = said + HOSTILE
    piece = Piece("text", told, 1.0, told)
    read = Tags(rows_page(told, [Drawn(told, None, ((piece,),), counts=told), Drawn(told, error=told)]))
    assert {tag for tag, _ in read.found} <= set(
        ["html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "span", "pre", "mark", "small"]
    )
    assert all(not name.startswith("on") for _, names in read.found for name in names)


def test_a_page_names_nothing_outside_of_itself(lab: Lab) -> None:
    page = rows_page("t", list(drawn_rows(lab.run("a"), None, 0, 5)))
    sources = [names["src"] or "" for _, names in Tags(page).found if "src" in names]
    assert sources
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "http:" not in page
    assert "https:" not in page


def test_a_large_picture_is_shown_small_and_a_broken_one_says_why(tmp_path: Path) -> None:
    shown = medium(Media("image", str(picture(tmp_path / "a.png", "red", side=2000))))
    assert shown.kind == "image"
    assert len(shown.uri) < 10_000
    (tmp_path / "b.png").write_bytes(b"no picture")
    broken = medium(Media("image", str(tmp_path / "b.png")))
    assert (broken.kind, broken.uri) == ("", "")
    assert "not a picture" in broken.note
    assert medium(Media("points", "a.npy")).note == "a page can't show points"


def test_sound_and_video_get_players_unless_they_are_large(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    assert medium(Media("audio", str(tmp_path / "a.wav"))).uri.startswith("data:audio/")
    assert medium(Media("video", b"1234")).uri.startswith("data:video/mp4")
    assert "too large" in medium(Media("video", b"1" * (9 << 20), (("start", 1.0),))).note


def test_a_tree_is_drawn_as_wide_as_its_longest_thread_with_branches_behind_what_they_share(lab: Lab) -> None:
    answers = [{"role": "assistant", "text": text, "replies": []} for text in ("yes", "no, " * 9)]
    prompt = {"role": "prompter", "text": "Well?", "replies": answers}
    write_rows(lab.folder / "tree.jsonl", [{"prompt": prompt}])
    recipe = lab.recipe("tree.jsonl")
    recipe["sources"][0]["format"] = "openassistant"
    run = lab.run("a", [lab.stage(recipe=recipe)])
    [row] = drawn_rows(run, None, 0, 1)
    root, *branches = row.bars
    assert len(branches) == len(row.branches) == 2
    assert all(bar.joint == (root.x + root.width, root.y + 8) for bar in branches)
    assert max(bar.x + bar.width for bar in row.bars) == pytest.approx(900)
    assert root.learned == 0
    assert all(0 < bar.learned <= 1 for bar in branches)
    assert rows_page("t", [row]).count("<rect") == 6
    stage = run.config.stages[0]
    mixture = run.mixture(stage.recipe)
    assert bars(run.encoding(stage).row(mixture, mixture.train[0])) == row.bars


def test_the_command_writes_a_page(lab: Lab, mmsft: Command) -> None:
    write_rows(lab.folder / "rows.jsonl", [{**lab.rows(1)[0], "id": HOSTILE}, {"conversations": HOSTILE}])
    file = lab.write(lab.config("a"))
    out = lab.folder / "page.html"
    said = mmsft("data", "show", file, "--html", out)
    assert (said.code, said.out.strip()) == (0, str(out))
    page = out.read_text(encoding="utf-8")
    assert "<script" not in page
    assert "expected a list" in page
    refused = mmsft("data", "show", file, "--html", lab.folder / "nowhere" / "page.html")
    assert refused.code == 2
    assert "can't be written" in refused.err
