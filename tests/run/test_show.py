from itertools import groupby

import pytest

from mmsft.data.mixture import Mixture
from mmsft.errors import ConfigError
from mmsft.run.show import Shown, show_rows
from mmsft.types import Conversation, Media, Part, Text, Turn
from tests.makers import COLOURS, Lab, row, write_rows


def one_row(lab: Lab, monkeypatch: pytest.MonkeyPatch, asked: tuple[Part, ...], answer: str, weight: float) -> Shown:
    turns = (Turn("user", asked), Turn("assistant", (Text(answer),), weight=weight))
    monkeypatch.setattr(Mixture, "conversation", lambda self, pair: Conversation("row", turns))
    [shown] = show_rows(lab.run("a"), None, 0, 1)
    return shown


def test_without_colour_learned_text_media_and_typed_control_tokens_are_told_apart(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = Media("image", str(lab.folder / "images" / "red.png"))
    asked = (picture, picture, Text("a <|im_end|> b"))
    shown = one_row(lab, monkeypatch, asked, "c <|im_end|>", weight=0.5).text()
    assert shown.splitlines()[1:5] == [
        "<|im_start|>user",
        "⟨image 1: red.png, 4 tokens⟩⟨image 2: red.png, 4 tokens⟩a [text: <|im_end|>] b<|im_end|>",
        "<|im_start|>assistant",
        "⟦c [text: <|im_end|>]<|im_end|>⟧[weight 0.5]",
    ]
    assert "\x1b" not in shown


def test_characters_of_several_tokens_are_whole_and_terminal_codes_are_pictures(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = one_row(lab, monkeypatch, (Text("日本 😀\x1b[31m\r�"),), "é", weight=1)
    assert "日本 😀␛[31m␍�<|im_end|>" in shown.text()
    assert "⟦é<|im_end|>⟧" in shown.text()
    assert "".join(token.text for token in shown.tokens).count("日本 😀\x1b[31m\r�") == 1


def test_no_row_is_shown_twice_and_none_beyond_the_end(lab: Lab) -> None:
    run = lab.run("a")
    assert len({row.id for row in show_rows(run, None, 0, 100)}) == len(list(show_rows(run, None, 0, 100))) == 24
    assert [row.id for row in show_rows(run, None, 23, 5)] == [list(show_rows(run, None, 0, 24))[-1].id]
    with pytest.raises(ConfigError, match="--start 24: stage align trains on 24 rows; write 0 to 23"):
        list(show_rows(run, None, 24, 1))


def test_a_tree_is_shown_thread_by_thread(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = (
        Turn("user", (Text("Which?"),)),
        Turn("assistant", (Text("this"),)),
        Turn("assistant", (Text("that one"),), parent=0),
    )
    monkeypatch.setattr(Mixture, "conversation", lambda self, pair: Conversation("tree", turns))
    shown = list(show_rows(lab.run("a"), None, 0, 1))
    assert [(row.id, row.thread, row.threads) for row in shown] == [("tree", 1, 2), ("tree", 2, 2)]
    learned = [[(token.text, token.weight) for token in row.tokens if token.weight] for row in shown]
    # Both answers begin with "th", which stands once and is learned twice.
    assert learned[0][:2] == [("th", 2.0), ("is", 1.0)]
    assert "".join(text for text, _ in learned[1]) == "at one<|im_end|>"
    assert all("Which?" in "".join(token.text for token in row.tokens) for row in shown)
    assert "tree, thread 2 of 2" in shown[1].text()


def test_ids_and_control_tokens_are_shown(lab: Lab) -> None:
    [shown] = show_rows(lab.run("a"), None, 0, 1)
    assert {token.text for token in shown.tokens if token.control} == {"<|im_start|>", "<|im_end|>"}
    words = shown.text().replace("[", "").replace("]", "").split()
    assert {str(token.id) for token in shown.tokens} <= set(words)


def test_rows_that_are_joined_follow_one_another_with_the_number_of_their_group(lab: Lab) -> None:
    write_rows(lab.folder / "asked.jsonl", [row(number, f"images/{COLOURS[number % 3]}.png") for number in range(9)])
    run = lab.run("a", [lab.stage(recipe=lab.recipe("asked.jsonl", join="shared_prefix"))])
    shown = list(show_rows(run, None, 0, 9))
    assert len([1 for number, _ in groupby(shown, key=lambda each: each.group)]) == 3
    assert {int(each.id.split(":")[1]) % 3 for each in shown[:3]} == {(int(shown[0].id.split(":")[1])) % 3}
    assert shown[0].text().startswith(f"── {shown[0].id}, group {shown[0].group} ──")
    assert shown[0].as_dict()["group"] == shown[0].group
    assert next(show_rows(lab.run("b"), None, 0, 1)).as_dict()["group"] is None
