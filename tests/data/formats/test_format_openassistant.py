from typing import Any

import pytest

from mmsft.data.chat import ChatEncoder
from mmsft.data.formats import openassistant
from mmsft.data.template import resolve_template
from mmsft.data.tree import threads
from mmsft.errors import DataError
from tests.data.conftest import byte_level


def said(id: str, text: str, *replies: dict[str, Any], **more: Any) -> dict[str, Any]:
    role = "prompter" if text.endswith("?") else "assistant"
    return {"message_id": id, "role": role, "text": text, "replies": list(replies), **more}


def tree(**changes: Any) -> dict[str, Any]:
    """Three levels: two answers to one question, one of which is asked about and answered twice."""
    more = said("d", "Sure?", said("e", "yes", rank=0, **changes), said("f", "no", rank=1))
    prompt = said("a", "Who?", said("b", "me"), said("c", "you", more))
    return {"message_tree_id": "a", "tree_state": "ready_for_export", "prompt": prompt}


def paths(record: dict[str, Any]) -> list[list[str]]:
    conversation = openassistant(record, "row:1")
    return [[conversation.turns[index].text for index in path] for path in conversation.threads()]


def test_a_tree_of_three_levels_gives_its_paths() -> None:
    assert paths(tree()) == [["Who?", "me"], ["Who?", "you", "Sure?", "yes"], ["Who?", "you", "Sure?", "no"]]


def test_every_answer_is_learned_once_and_what_is_shared_is_read_once() -> None:
    tokenizer = byte_level()
    encoder = ChatEncoder(tokenizer, resolve_template("chatml", tokenizer))
    encoded = encoder.encode(openassistant(tree(), "row:1"))
    learned = [tokenizer.decode(thread.targets.token.tolist()) for thread in threads(encoded)]
    end = "<|im_end|>"
    assert sorted(learned) == sorted([f"me{end}", f"you{end}yes{end}", f"no{end}"])
    assert len(encoded) < sum(map(len, threads(encoded)))


@pytest.mark.parametrize("change", [{"deleted": True}, {"review_result": False}])
def test_what_was_refused_is_left_out_with_its_branch(change: dict[str, Any]) -> None:
    assert paths(tree(**change)) == [["Who?", "me"], ["Who?", "you", "Sure?", "no"]]
    record = tree()
    record["prompt"]["replies"][1] |= change
    assert paths(record) == [["Who?", "me"]]


def test_a_deep_tree_is_read() -> None:
    node = said("x", "end")
    for number in range(3000):
        node = said(str(number), "Go on?" if number % 2 == 0 else "well", node)
    assert len(openassistant({"prompt": node["replies"][0]}, "row:1").turns) == 3000


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"parent_id": "b"}, r"row:1: message 2: its parent_id is str 'b', and it stands among the replies to str 'a'"),
        ({"message_id": "a"}, r"row:1: message 2: message_id str 'a' is there twice"),
        ({"role": "moderator"}, r"row:1: message 2: role str 'moderator'; OpenAssistant's are prompter and assistant"),
        ({"text": None}, r"row:1: message 2: 'text' is null"),
        ({"replies": {}, "text": ["x"]}, r"row:1: message 2: expected text, got list"),
    ],
)
def test_a_broken_message_is_named(change: dict[str, Any], says: str) -> None:
    record = tree()
    record["prompt"]["replies"][0] |= change
    with pytest.raises(DataError, match=says):
        openassistant(record, "row:1")


def test_a_tree_without_answers_is_refused() -> None:
    with pytest.raises(DataError, match=r"row:1: no answer is left"):
        openassistant({"prompt": said("a", "Who?", said("b", "me", deleted=True))}, "row:1")
