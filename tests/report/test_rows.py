"""Pages of rows: hostile text stays text, media are inside of the page, and a tree is drawn as it is."""

from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsft.data.mixture import Mixture
from mmsft.report.media import Medium
from mmsft.report.rows import LONG, OPEN, Drawn, Piece, Said, Token, rows_page
from mmsft.report.tree import WIDE, drawn, outline
from mmsft.run.drawn import drawn_rows
from mmsft.types import Conversation, Media, Text, Turn
from tests.makers import COLOURS, Command, Lab, row, write_rows

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>&lt;\"'</pre></p>{{ 7 * 7 }}"
WHOLE = {
    *("html", "head", "meta", "title", "style", "body", "header", "main", "section", "article", "h1", "h2", "p"),
    *("span", "ul", "ol", "li", "div", "small", "a", "i", "mark", "details", "summary", "figure", "figcaption"),
    *("audio", "video", "img", "svg", "g", "rect", "path"),
}
"""All elements that a page of rows is made of."""


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
    pieces = ((Piece("text", 1.0, (Token(told, told),)),),)
    kinds = ("image", "audio", "video", "stills", "")
    media = (Medium(kind, told, ("data:,",), told, told, 9, "data:,") for kind in kinds)
    parts: tuple[str | Medium, ...] = (told, *media)
    turn = Said(1, "user", None, 0, 0.5, parts, ((told, told),))
    rows = [
        Drawn(told, 1, told, ((told, told),), (turn,), threads=pieces, group=1, note=told),
        Drawn(told, 2, group=1),
        Drawn(told, 3, error=told, raw=told),
        Drawn(told, 4),
    ]
    read = Tags(rows_page(told, rows, [told]))
    assert {tag for tag, _ in read.found} <= WHOLE
    assert all(not name.startswith("on") for _, names in read.found for name in names)
    assert all((names.get("src") or "data:").startswith("data:") for _, names in read.found)
    assert {names["href"] for tag, names in read.found if tag == "a"} == {f"#row-{number}" for number in range(1, 5)}


def test_characters_that_turn_what_follows_are_told(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = (Turn("user", (Text("a\u202eb\x1b"),)), Turn("assistant", (Text("c"),)))
    monkeypatch.setattr(Mixture, "conversation", lambda self, pair: Conversation("row", turns))
    page = rows_page("t", drawn_rows(lab.run("a"), None, 0, 1))
    assert "a[U+202E]b␛" in page
    assert not {"\u202e", "\x1b"} & set(page)


def test_a_page_names_nothing_outside_of_itself(lab: Lab) -> None:
    page = rows_page("t", drawn_rows(lab.run("a"), None, 0, 5))
    sources = [names["src"] or "" for _, names in Tags(page).found if "src" in names]
    assert sources
    assert all(source.startswith("data:image/webp;base64,") for source in sources)
    assert "http:" not in page
    assert "https:" not in page
    assert "url(" not in page


def test_who_cannot_see_media_is_told_what_they_are(lab: Lab) -> None:
    page = Tags(rows_page("t", drawn_rows(lab.run("a"), None, 0, 9)))
    assert all(names["alt"] for tag, names in page.found if tag == "img")
    assert all(names["aria-label"] for tag, names in page.found if tag in ("svg", "audio", "video"))
    ids = {names["id"] for _, names in page.found if "id" in names}
    assert {(names["href"] or "").removeprefix("#") for tag, names in page.found if tag == "a"} <= ids


def test_turns_media_tokens_and_their_numbers_are_those_of_the_row(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    red = Media("image", str(lab.folder / "images" / "red.png"))
    turns = (
        Turn("user", (Text("Is "), red, Text("like\n"), red, Text("?"))),
        Turn("assistant", (Text("yes"),), weight=0.5, reasoning="I look."),
    )
    monkeypatch.setattr(Mixture, "conversation", lambda self, pair: Conversation("r", turns, {"kind": "short"}))
    [shown] = drawn_rows(lab.run("a"), None, 3, 1)
    assert (shown.number, shown.source, shown.tags) == (4, "rows", (("kind", "short"),))
    user, assistant = shown.turns
    first, again = (part for part in user.parts if isinstance(part, Medium))
    assert [part for part in user.parts if isinstance(part, str)] == ["Is ", "like", "?"]
    assert (first.kind, again.uris, again.note) == ("image", (), "as above")  # its bytes stand once
    assert (assistant.remarks, assistant.more) == ("weight 0.5", (("reasoning", "I look."),))
    [thread] = shown.threads
    text = "".join(token.text for piece in thread if piece.weight == 0.5 for token in piece.tokens)
    assert text == "<think>\nI look.\n</think>\n\nyes<|im_end|>"
    assert shown.learned == sum(len(piece.tokens) for piece in thread if piece.weight is not None)
    assert shown.slots == 8
    assert shown.tokens == shown.slots + sum(len(piece.tokens) for piece in thread if piece.kind != "media")


def test_a_row_that_cannot_be_used_is_shown_as_far_as_it_can_be_read(lab: Lab) -> None:
    (lab.folder / "a.wav").write_bytes(b"RIFF")
    talk = [{"from": "human", "value": "<audio>\nWhat?"}, {"from": "gpt", "value": "x"}]
    deaf = {"audio": "a.wav", "conversations": talk}
    broken = {"conversations": HOSTILE}
    write_rows(lab.folder / "rows.jsonl", [{**deaf, "kind": "a"}, {**broken, "kind": "b"}])
    rows = {one.id.rpartition(":")[2]: one for one in drawn_rows(lab.run("a"), None, 0, 2)}
    assert "the model has no audio tower" in (rows["1"].error or "")
    assert rows["1"].turns[0].parts[1] == "What?"
    assert isinstance(rows["1"].turns[0].parts[0], Medium)
    assert "expected a list" in (rows["2"].error or "")
    assert "alert(1)" in rows["2"].raw
    assert not rows["1"].threads
    page = Tags(rows_page("t", list(rows.values())))
    assert sum("can't be used" in said for said in page.said) == 2


def test_what_is_long_opens_at_a_click(lab: Lab) -> None:
    long, short = ("".join(f"{number} " for number in range(count)) for count in (3000, 10))
    pieces = [tuple(Piece("text", None, (Token("1", "x"),)) for _ in range(count)) for count in (OPEN, OPEN + 1)]
    turns = tuple(Said(1, "user", None, 0, 1.0, (text,)) for text in (long, short))
    page = Tags(rows_page("t", [Drawn("a", turns=turns, threads=(pieces[0],)), Drawn("b", 2, threads=(pieces[1],))]))
    opened = [("open" in names) for tag, names in page.found if tag == "details"]
    assert opened == [False, True, False]  # the long text's rest, and the threads
    assert f"{len(long) - LONG:,} characters more" in page.said
    assert "".join(page.said).count("2999 ") == 1


def tree(lab: Lab) -> Conversation:
    replies = [Turn("assistant", (Text(text),), parent=0) for text in ("yes", "no, " * 9)]
    return Conversation("tree", (Turn("user", (Text("Well?"),)), *replies))


def test_a_tree_is_drawn_as_wide_as_its_longest_thread_with_branches_behind_what_they_share(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Mixture, "conversation", lambda self, pair: tree(lab))
    run = lab.run("a")
    [shown] = drawn_rows(run, None, 0, 1)
    assert shown.tree is not None
    root, *branches = shown.tree.bars
    assert len(branches) == len(shown.threads) == 2
    assert all(bar.joint == (root.x + root.width, root.y + 9) for bar in branches)
    assert max(bar.x + bar.width for bar in shown.tree.bars) == pytest.approx(WIDE)
    assert root.marks == ()
    for bar in branches:
        # All of a branch is learned, from its first token, which stands behind the shared prompt.
        [mark] = bar.marks
        assert mark.kind == "learned"
        assert [mark.x, mark.width] == pytest.approx([bar.x, bar.width])
    assert [(turn.number, turn.answers, turn.depth) for turn in shown.turns] == [(1, None, 0), (2, None, 1), (3, 1, 1)]
    assert shown.turns[2].remarks == "turn 3, answers turn 1"
    page = Tags(rows_page("t", [shown]))
    assert [tag for tag, _ in page.found].count("rect") == 5
    stage = run.config.stages[0]
    mixture = run.mixture(stage.recipe)
    encoded = run.encoding(stage).row(mixture, mixture.train[0])
    assert drawn(encoded) == shown.tree
    lines = outline(encoded).splitlines()
    assert [line.strip(" └") for line in lines] == [bar.label for bar in shown.tree.bars]
    assert [line.startswith("  └ ") for line in lines] == [False, True, True]


def test_rows_that_are_joined_stand_together_with_the_tree_that_they_make(lab: Lab) -> None:
    write_rows(lab.folder / "asked.jsonl", [row(number, f"images/{COLOURS[number % 3]}.png") for number in range(9)])
    run = lab.run("a", [lab.stage(recipe=lab.recipe("asked.jsonl", join="shared_prefix"), micro_batch="900 tokens")])
    shown = drawn_rows(run, None, 0, 9)
    first = [one for one in shown if one.joined]
    assert len(first) == 3
    for one in first:
        assert one.joined is not None
        assert len([bar for bar in one.joined.bars if bar.joint is None]) == 1
        kinds = {mark.kind for bar in one.joined.bars[1:] for mark in bar.marks}
        assert kinds == {"learned"}  # the picture is in what they share
        alone = sum(other.tokens for other in shown if other.group == one.group)
        assert int(one.joined.label.partition(" ")[0]) < alone
    page = Tags(rows_page("t", shown))
    assert sum(said == "3 rows that begin alike" for said in page.said) == 3


def test_the_command_writes_a_page(lab: Lab, mmsft: Command) -> None:
    write_rows(lab.folder / "rows.jsonl", [{**lab.rows(1)[0], "id": HOSTILE}, {"conversations": HOSTILE}])
    file = lab.write(lab.config("a"))
    out = lab.folder / "page.html"
    said = mmsft("data", "show", file, "--html", out)
    assert (said.code, said.out.strip()) == (0, str(out))
    page = out.read_text(encoding="utf-8")
    assert "<script" not in page
    assert "expected a list" in page
    assert "Rows 1 to 2 of the 2 of an epoch" in page
    assert "Towers: image clip." in page
    refused = mmsft("data", "show", file, "--html", lab.folder / "nowhere" / "page.html")
    assert refused.code == 2
    assert "can't be written" in refused.err
