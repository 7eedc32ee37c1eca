import pytest

from mmsft.data.mixture import Mixture
from mmsft.run.show import show_rows
from mmsft.types import Conversation, Text, Turn
from tests.makers import Lab


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
