from mmsft.data.shared import beginning, group
from mmsft.types import Conversation, Media, Part, Text, Turn

CAT = Media("image", "cat.png")


def talk(*parts: Part, system: str | None = None, id: str = "a") -> Conversation:
    lead = () if system is None else (Turn("system", (Text(system),)),)
    return Conversation(id, (*lead, Turn("user", parts), Turn("assistant", (Text(f"answer {id}"),))))


def alike(one: Conversation, other: Conversation) -> bool:
    return beginning(one) == beginning(other)


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


def test_rows_that_begin_alike_have_one_number_and_others_their_own() -> None:
    assert group([b"a", b"b", b"a", None, None, b"b"], 9).tolist() == [0, 1, 0, 2, 3, 1]
    assert group([], 9).tolist() == []


def test_a_group_has_a_largest_size() -> None:
    assert group([b"a", b"b", b"a", b"a", b"b", b"a", b"a"], 2).tolist() == [0, 1, 0, 2, 1, 2, 3]
