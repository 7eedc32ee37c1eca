import tracemalloc
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mmsft.data.shared import beginning, group, key
from mmsft.types import Conversation, Media, Part, Text, ToolCall, Turn

CAT = Media("image", "cat.png")


def talk(*parts: Part, system: str | None = None, id: str = "a") -> Conversation:
    lead = () if system is None else (Turn("system", (Text(system),)),)
    return Conversation(id, (*lead, Turn("user", parts), Turn("assistant", (Text(f"answer {id}"),))))


def alike(one: Conversation, other: Conversation) -> bool:
    keys = key(beginning(one)), key(beginning(other))
    assert (keys[0] == keys[1]) is (beginning(one) == beginning(other))
    return keys[0] == keys[1]


def said(role: Any, *parts: Part, **more: Any) -> Turn:
    return Turn(role, parts, **more)


def test_questions_about_one_medium_begin_alike_whatever_they_ask() -> None:
    assert alike(talk(CAT, Text("Colour?")), talk(CAT, Text("Shape?"), id="b"))
    assert not alike(talk(CAT, Text("Colour?")), talk(Media("image", "dog.png"), Text("Colour?")))
    assert not alike(talk(CAT), talk(Media("image", "cat.png", (("crop", 1),))))


def test_what_stands_before_the_last_medium_counts() -> None:
    assert not alike(talk(Text("A"), CAT), talk(Text("B"), CAT))
    assert alike(talk(CAT, Text("x"), CAT, Text("one")), talk(CAT, Text("x"), CAT, Text("two")))
    assert not alike(talk(CAT, Text("x"), CAT), talk(CAT, Text("y"), CAT))


def test_text_begins_alike_only_where_all_of_the_first_question_is_the_same() -> None:
    assert alike(talk(Text("Why?")), talk(Text("Why?"), id="b"))
    assert not alike(talk(Text("Why?")), talk(Text("Why not?")))


def test_the_system_message_and_tools_count() -> None:
    assert not alike(talk(CAT, system="Be brief."), talk(CAT, system="Be kind."))
    assert not alike(talk(CAT, system="Be brief."), talk(CAT))
    row = talk(CAT)
    assert not alike(row, Conversation("a", row.turns, tools=({"name": "f"},)))
    assert not alike(row, Conversation("a", row.turns, template_kwargs={"enable_thinking": False}))


def test_turns_before_the_first_question_count_whoever_says_them() -> None:
    def greeted(hello: str, ask: str, **more: Any) -> Conversation:
        return Conversation("a", (said("assistant", Text(hello), **more), said("user", Text(ask))))

    assert alike(greeted("Hello.", "Why?"), greeted("Hello.", "Why?"))
    assert not alike(greeted("Hello.", "Why?"), greeted("Hello.", "Where?"))
    assert not alike(greeted("Hello.", "Why?"), greeted("Good day.", "Why?"))
    assert not alike(greeted("Hello.", "Why?"), greeted("Hello.", "Why?", reasoning="Who is it?"))
    called = [greeted("Hello.", "Why?", tool_calls=(ToolCall("look", {"at": at}),)) for at in ("it", "me", "it")]
    assert (alike(called[0], called[1]), alike(called[0], called[2])) == (False, True)


def test_what_is_said_after_the_first_question_counts_for_nothing() -> None:
    """Several answers to one question begin alike, also where a picture follows them."""
    answers = [(said("user", Text("Why?")), said("assistant", Text(text)), said("user", CAT)) for text in "ab"]
    assert alike(*(Conversation("a", turns) for turns in answers))


def test_questions_about_a_medium_that_is_shown_before_them_begin_alike() -> None:
    def shown(medium: Media, ask: str) -> Conversation:
        return Conversation("a", (said("system", Text("See"), medium, Text("well")), said("user", Text(ask))))

    assert alike(shown(CAT, "Colour?"), shown(CAT, "Shape?"))
    assert not alike(shown(CAT, "Colour?"), shown(Media("image", "dog.png"), "Colour?"))


def test_the_order_of_names_in_tools_counts_for_nothing() -> None:
    def with_tools(*tools: dict[str, Any]) -> Conversation:
        return Conversation("a", talk(CAT).turns, tools=tools)

    schema = {"name": "f", "parameters": {"type": "object", "required": ["a", "b"]}}
    other = {"parameters": {"required": ["a", "b"], "type": "object"}, "name": "f"}
    assert alike(with_tools(schema), with_tools(other))
    assert not alike(with_tools(schema), with_tools(schema, other))
    assert not alike(
        with_tools(schema), with_tools({**schema, "parameters": {"type": "object", "required": ["b", "a"]}})
    )


def test_pictures_in_rows_are_told_apart_by_their_bytes_and_read_as_bytes() -> None:
    big = bytes(1 << 22)
    one, other = (talk(Media("image", data)) for data in (big, big[:-1] + b"1"))
    assert not alike(one, other)
    assert alike(one, talk(Media("image", bytes(bytearray(big)))))
    assert not alike(talk(Media("image", b"cat.png")), talk(Media("image", "cat.png")))
    tracemalloc.start()
    key(beginning(one))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # `repr` of such bytes takes four times their room.
    assert peak < len(big) / 100


@given(st.lists(st.integers(0, 5), max_size=30), st.integers(2, 5))
def test_groups_are_of_one_key_and_full_but_for_the_last_and_counted_as_they_come(drawn: list[int], most: int) -> None:
    # One key at a time, row by row: what the sort has to come to.
    open_groups: dict[int, tuple[int, int]] = {}
    expected: list[int] = []
    for each in drawn:
        number, members = open_groups.get(each, (-1, most))
        if members == most:
            number, members = max(expected, default=-1) + 1, 0
        open_groups[each] = number, members + 1
        expected.append(number)
    assert group(np.array(drawn, np.uint64), most).tolist() == expected


def test_a_million_rows_are_grouped_in_little_room() -> None:
    keys = np.random.default_rng(0).integers(0, 1 << 63, 1_000_000).astype(np.uint64)
    tracemalloc.start()
    groups = group(keys, 64)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert groups.nbytes == 4 * len(keys)
    # Keys sorted and their order, 8 bytes each, and a few arrays of 4: a dictionary of keys takes 200 a row.
    assert peak < 48 * len(keys)
