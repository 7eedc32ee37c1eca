"""What all formats of turns share: roles, weights, media and their tags, and what is refused."""

from typing import Any

import pytest

from mmsft.data.formats import FORMATS, llava, messages, sharegpt
from mmsft.data.formats.turns import SPEAKERS
from mmsft.errors import DataError
from mmsft.types import Media, Text
from tests.data.formats.rows import chat, media, said, talk

QA = (("human", "Q"), ("gpt", "A"))


def test_a_llava_row_keeps_its_tag_and_line_break_where_they_stand() -> None:
    row = {
        "id": 7,
        "image": "a.jpg",
        **talk(("human", "<image>\nWhat?"), ("gpt", "A cat."), ("human", "Why?"), ("gpt", "So.")),
    }
    assert said(llava(row, "r:1")) == [
        ("user", [("image", "a.jpg"), "\nWhat?"]),
        ("assistant", ["A cat."]),
        ("user", ["Why?"]),
        ("assistant", ["So."]),
    ]


def test_a_text_only_llava_row_has_no_media() -> None:
    assert media(llava(talk(*QA), "r:1")) == []


@pytest.mark.parametrize(("name", "speaker"), [*SPEAKERS.items(), ("User", "user"), (" GPT ", "assistant")])
def test_every_known_role_is_read_in_any_case(name: str, speaker: str) -> None:
    content = '{"name": "f", "arguments": {}}' if speaker == "function_call" else "text"
    turn = sharegpt(talk(*QA, ("human", "Q"), (name, content), *QA), "r:1").turns[3]
    assert turn.role == ("assistant" if speaker == "function_call" else speaker)


def test_an_unknown_role_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(DataError, match=r"r:1: turn 2 of 2: unknown role .*'asistant'.*did you mean 'assistant'\?"):
        messages(chat(("user", "Q"), ("asistant", "A")), "r:1")


def test_several_files_fill_tags_anywhere_in_the_order_of_the_row() -> None:
    row = talk(("human", "<image>one<image><video>"), ("gpt", "A"), ("human", "and <image>?"), ("gpt", "B"))
    read = sharegpt({**row, "images": ["1.png", {"bytes": None, "path": "2.png"}, b"three"], "videos": "v.mp4"}, "r:1")
    assert said(read)[0] == ("user", [("image", "1.png"), "one", ("image", "2.png"), ("video", "v.mp4")])
    assert said(read)[2] == ("user", ["and ", ("image", b"three"), "?"])


@pytest.mark.parametrize(
    ("column", "file"),
    [
        ({"image": "a.png"}, "a.png"),
        ({"image": ["a.png"]}, "a.png"),
        ({"images": "a.png"}, "a.png"),
        ({"images": [{"path": "a.png"}], "image": None}, "a.png"),
        ({"images": [{"url": "a.png"}]}, "a.png"),
        ({"image": {"bytes": b"png", "path": "a.png"}}, b"png"),
        ({"image": "a.png", "images": "a.png"}, "a.png"),
        ({"media": {"image": "a.png"}}, "a.png"),
        ({"images": [{"base64": "AAAA"}]}, "data:image/*;base64,AAAA"),
    ],
)
def test_the_ways_to_name_a_file_are_one(column: dict[str, Any], file: str | bytes) -> None:
    assert media(llava({**talk(("human", "<image>Q"), ("gpt", "A")), **column}, "r:1")) == [Media("image", file)]


@pytest.mark.parametrize("nothing", [None, "", [], {"bytes": None, "path": None}])
def test_a_filled_up_column_is_no_file(nothing: object) -> None:
    assert media(llava({**talk(*QA), "image": nothing}, "r:1")) == []


def test_a_modality_of_the_users_own_has_its_files_in_a_column_media() -> None:
    row = {**talk(("human", "<touch> <b>what</b>?"), ("gpt", "A")), "media": {"touch": ["a.npy"]}, "b": "other"}
    assert said(sharegpt(row, "r:1"))[0] == ("user", [("touch", "a.npy"), " <b>what</b>?"])


@pytest.mark.parametrize(
    ("text", "files", "says"),
    [
        ("Q", ["a.png"], r"0 <image> tags in the text, but 1 image file in the row"),
        ("<image>", [], r"1 <image> tag in the text, but 0 image files in the row"),
        ("<image><image>", ["a.png"], r"2 <image> tags in the text, but 1 image file in the row"),
        ("<image>", ["a.png", "b.png"], r"1 <image> tag in the text, but 2 image files in the row"),
    ],
)
@pytest.mark.parametrize("name", ["llava", "sharegpt", "messages", "alpaca"])
def test_tags_and_files_that_differ_in_number_are_refused_with_both(
    name: str, text: str, files: list[str], says: str
) -> None:
    rows = {"messages": chat(("user", text), ("assistant", "A")), "alpaca": {"instruction": text, "output": "A"}}
    row = rows.get(name, talk(("human", text), ("gpt", "A")))
    with pytest.raises(DataError, match=f"^r:1: {says}; "):
        FORMATS[name]({**row, "images": files}, "r:1")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({}, r"no 'conversations'; keys here: none"),
        ({"conversation": []}, r"no 'conversations' \(did you mean 'conversation'\?\)"),
        ({"conversations": None}, "'conversations' is null"),
        ({"conversations": []}, "the list is empty"),
        ({"conversations": "text"}, "expected a list, got str 'text'"),
        ({"conversations": ["text"]}, "turn 1 of 1: expected an object"),
        (talk(("human", "Q")), "no assistant turn"),
        (talk(("human", "Q"), ("gpt", "")), r"turn 2 of 2 \(assistant\) is empty"),
        (talk(("human", "Q"), ("gpt", " \n")), r"turn 2 of 2 \(assistant\) is empty"),
        (talk(("human", ""), ("gpt", "A")), r"turn 1 of 2 \(user\) is empty"),
        (talk(("human", "Q"), ("gpt", None)), r"turn 2 of 2 \(assistant\): 'value' is null"),
        (talk(("human", "Q"), ("gpt", True)), r"expected text, got bool True"),
        (talk(("human", "Q"), ("gpt", {"a": 1})), "expected text, got dict"),
        (talk(("human", "Q"), (None, "A")), "'from' is null"),
        (talk(("human", "Q"), (3, "A")), "unknown role"),
        ({"conversations": [{"from": "human", "role": "gpt", "value": "Q"}]}, "'role' and 'from' differ"),
        ({**talk(*QA), "image": 3}, "image 1: expected a path"),
        ({**talk(*QA), "images": [None]}, "image 1: expected a path"),
        ({**talk(*QA), "images": [{"width": 3}]}, "none of bytes, path, url, data, base64 is filled; keys here: width"),
        ({**talk(*QA), "image": "a.png", "images": ["b.png"]}, "'image' and 'images' differ"),
        ({**talk(*QA), "media": {"image": "a"}, "image": "b"}, "keep one"),
        ({**talk(*QA), "media": ["a"]}, "media: expected an object"),
        ({**talk(*QA), "system": ["S"]}, "system: expected text"),
        ({**talk(("system", "S"), *QA), "system": "T"}, "'system' and the system turn differ"),
        ({**talk(*QA), "chosen": "a", "rejected": "b"}, "preference pair"),
        ({**talk(*QA), "chat_template_kwargs": [1]}, "chat_template_kwargs: expected an object"),
        ({**talk(*QA), "tools": "[{"}, "tools: not valid JSON"),
        ({**talk(*QA), "tools": 5}, "tools must be a list"),
        ({**talk(*QA), "tools": [{"description": "f"}]}, "tool 1: no 'name'"),
    ],
)
def test_what_is_missing_or_wrong_is_an_error_that_names_row_and_place(row: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=f"^r:1: ?.*{says}"):
        llava(row, "r:1")


def test_a_number_is_text_as_mixed_columns_hold_it() -> None:
    assert said(llava(talk(("human", 2), ("gpt", 0.5)), "r:1")) == [("user", ["2"]), ("assistant", ["0.5"])]
    assert said(llava(talk(("human", 10**400), ("gpt", "A")), "r:1"))[0] == ("user", [str(10**400)])
    with pytest.raises(DataError, match="expected text, got float nan"):
        llava(talk(("human", float("nan")), ("gpt", "A")), "r:1")


@pytest.mark.parametrize(("flag", "weight"), [({"loss": False}, 0.0), ({"train": True}, 1.0), ({"weight": 0.5}, 0.5)])
def test_flags_of_a_turn_become_its_weight(flag: dict[str, Any], weight: float) -> None:
    row = {
        "conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A", "loss_weight": None, **flag}]
    }
    assert sharegpt(row, "r:1").turns[1].weight == weight


@pytest.mark.parametrize(
    "flags",
    [{"loss": "no"}, {"weight": -1}, {"weight": float("nan")}, {"weight": 10**400}, {"loss": 1, "train": False}],
)
def test_a_weight_that_is_none_is_refused(flags: dict[str, Any]) -> None:
    row = {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A", **flags}]}
    with pytest.raises(DataError, match=r"turn 2 of 2 \(assistant\): "):
        sharegpt(row, "r:1")


def test_an_answer_before_any_question_stays_as_context() -> None:
    turns = sharegpt(talk(("system", "S"), ("gpt", "Hello"), *QA), "r:1").turns
    assert [(turn.role, turn.weight) for turn in turns][1:] == [("assistant", 0.0), ("user", 1.0), ("assistant", 1.0)]


def test_a_system_column_comes_first_and_isnt_doubled() -> None:
    expected = [("system", ["S"]), ("user", ["Q"]), ("assistant", ["A"])]
    assert said(sharegpt(talk(*QA, system="S"), "r:1")) == expected
    assert said(sharegpt(talk(("system", "S"), *QA, system="S"), "r:1")) == expected
    assert said(sharegpt(talk(*QA, system=""), "r:1")) == expected[1:]


def test_an_empty_system_turn_stays_since_templates_put_a_default_in_its_place() -> None:
    turn = messages(chat(("system", ""), ("user", "Q"), ("assistant", "A")), "r:1").turns[0]
    assert (turn.role, turn.parts) == ("system", ())


def test_parts_are_said_in_their_order_and_their_text_is_only_text() -> None:
    parts = [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}},
        {"type": "text", "text": "see <image>", "image_url": None},
        {"type": "image", "image": {"bytes": b"x", "path": None}},
        {"type": "video", "video": "v.mp4", "start": 1, "end": 2.5, "fps": None},
        {"type": "input_audio", "input_audio": {"data": "BBBB", "format": "wav"}},
        {"type": "touch", "touch": "t.npy"},
        {"type": "image_url", "value": "b.png"},
        {"type": "image", "path": "c.png"},
    ]
    assert messages(chat(("user", parts), ("assistant", "A")), "r:1").turns[0].parts == (
        Media("image", "data:image/png;base64,AAAA"),
        Text("see <image>"),
        Media("image", b"x"),
        Media("video", "v.mp4", (("end", 2.5), ("start", 1))),
        Media("audio", "data:audio/*;base64,BBBB"),
        Media("touch", "t.npy"),
        Media("image", "b.png"),
        Media("image", "c.png"),
    )


def test_an_image_part_without_a_file_takes_the_columns_next_one() -> None:
    row = chat(("user", [{"type": "image"}, {"type": "text", "text": "Q"}]), ("assistant", "A"), images=["a.png"])
    assert said(messages(row, "r:1"))[0] == ("user", [("image", "a.png"), "Q"])
    with pytest.raises(DataError, match="1 <image> tag in the text, but 0 image files"):
        messages({**row, "images": []}, "r:1")


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ({"type": "imge"}, r"unknown type str 'imge' \(did you mean 'image'\?\)"),
        ({"text": "a"}, "no 'type'"),
        ({"type": "text"}, "no 'text' or 'value'"),
        ("a", "expected an object"),
        ({"type": "image", "image": ""}, "expected a path"),
    ],
)
def test_a_part_that_cannot_be_read_is_named(part: object, says: str) -> None:
    with pytest.raises(DataError, match=rf"r:1: turn 1 of 2 \(user\), part 2: {says}"):
        messages(chat(("user", [{"type": "text", "text": "Q"}, part]), ("assistant", "A")), "r:1")
