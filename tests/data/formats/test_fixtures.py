"""Each format's fixture: rows as its data set has them, in variants, and broken; and what they are read as."""

from pathlib import Path
from typing import Any

import pytest

from mmsft.data.formats import FORMATS, with_options
from mmsft.data.formats.recognise import recognise
from mmsft.data.formats.regions import Size
from mmsft.errors import ConfigError, DataError
from mmsft.types import Conversation, Text
from tests.makers import lines

FIXTURES = Path(__file__).parent / "fixtures"
GIVEN = {"count": lambda: lambda text: len(text.split()), "size": lambda: lambda medium: Size(100, 50)}
CASES = [(name, number, case) for name in FORMATS for number, case in enumerate(lines(FIXTURES / f"{name}.jsonl"))]
READABLE = [case for case in CASES if case[2]["kind"] != "broken"]


def read(name: str, case: dict[str, Any]) -> Conversation:
    return with_options(name, case.get("options", {}), GIVEN)(case["row"], "file.jsonl:7")


def spoken(conversation: Conversation) -> list[list[Any]]:
    """Returns each turn as a fixture writes it: its role, then texts and [modality, file] pairs."""
    return [
        [turn.role, *(part.text if isinstance(part, Text) else [part.modality, part.ref] for part in turn.parts)]
        for turn in conversation.turns
    ]


def ids(case: Any) -> str:
    return case if isinstance(case, str) else f"{case}" if isinstance(case, int) else case["kind"]


@pytest.mark.parametrize(("name", "number", "case"), READABLE, ids=ids)
def test_a_row_is_read_as_its_fixture_says(name: str, number: int, case: dict[str, Any]) -> None:
    conversation = read(name, case)
    turns = spoken(conversation)
    if case.get("drawn"):  # one of several answers
        assert turns[-1][1] in case["turns"][-1][1]
        assert turns[:-1] == case["turns"][:-1]
    else:
        assert turns == case["turns"]
    assert conversation.id == "file.jsonl:7"
    if "tags" in case:
        assert conversation.tags == case["tags"]
    if "weights" in case:
        assert [turn.weight for turn in conversation.turns] == case["weights"]
    if "parents" in case:
        assert [conversation.parent(index) for index in range(len(turns))] == case["parents"]
    if "threads" in case:
        assert [list(thread) for thread in conversation.threads()] == case["threads"]
    if "calls" in case:
        assert [len(turn.tool_calls) for turn in conversation.turns] == case["calls"]
    if "ranks" in case:
        assert [turn.rank for turn in conversation.turns] == case["ranks"]
    if "pairs" in case:
        assert [list(pair) for pair in conversation.ranked_pairs()] == case["pairs"]


@pytest.mark.parametrize(("name", "number", "case"), [it for it in CASES if it[2]["kind"] == "broken"], ids=ids)
def test_a_broken_row_is_refused_with_its_id_and_the_reason(name: str, number: int, case: dict[str, Any]) -> None:
    with pytest.raises(DataError) as refused:
        read(name, case)
    assert str(refused.value).startswith("file.jsonl:7")
    assert case["error"] in str(refused.value)


@pytest.mark.parametrize("name", FORMATS)
def test_a_fixture_has_rows_of_each_kind(name: str) -> None:
    kinds = [case["kind"] for other, _, case in CASES if other == name]
    assert {kind: kinds.count(kind) > 0 for kind in ("valid", "variant", "broken")} == dict.fromkeys(kinds, True)


@pytest.mark.parametrize(("name", "number", "case"), READABLE, ids=ids)
def test_a_row_is_recognised_by_its_columns(name: str, number: int, case: dict[str, Any]) -> None:
    known = recognise([case["row"]], "file.jsonl")
    # Dialogues without a picture are written alike in both.
    assert known == name or {known, name} == {"llava", "sharegpt"}


def test_rows_of_two_formats_are_refused_by_both_names() -> None:
    talk = {"conversations": [{"from": "human", "value": "q"}], "image": "a.jpg"}
    both = {**talk, "messages": [{"role": "user", "content": "q"}]}
    with pytest.raises(ConfigError, match=r"could be llava or messages .*state `format`"):
        recognise([both], "file.jsonl")


def test_rows_of_no_format_are_refused_with_their_columns() -> None:
    with pytest.raises(ConfigError, match=r"of no format that is known \(columns: a, b\)"):
        recognise([{"a": 1}, {"b": 2}], "file.jsonl")


def test_a_file_in_which_only_some_rows_have_a_picture_is_llava() -> None:
    talk = {"conversations": [{"from": "human", "value": "q"}]}
    assert recognise([talk, {**talk, "image": "a.jpg"}], "file.jsonl") == "llava"
    assert recognise([talk, talk], "file.jsonl") == "sharegpt"


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("orca", {"eras": "x"}, r"unknown option 'eras' \(did you mean 'erase'\?\); options of orca: erase"),
        ("orca", {"erase": 3}, "option 'erase'"),
        ("ranked", {"learn": "worst"}, "option 'learn'"),
        ("natural_instructions", {"count": 3}, "unknown option 'count'"),
        ("llava", {"x": 1}, "options of llava: none"),
    ],
)
def test_an_option_that_a_format_does_not_take_is_refused(name: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        with_options(name, options, GIVEN)


def test_the_number_of_examples_falls_as_the_budget_shrinks() -> None:
    row = {
        "Definition": ["Add."],
        "Positive Examples": [{"input": f"{n}", "output": f"{n}"} for n in range(5)],
        "input": "4",
        "output": ["4"],
    }
    counts = []
    for budget in (100, 40, 30, 20, 10):
        format = with_options("natural_instructions", {"positive": 5, "budget": budget}, GIVEN)
        counts.append(format(row, "r:1").turns[0].text.count("Positive Example"))
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 5
    assert counts[-1] == 0


def test_tk_instruct_draws_each_of_its_five_encodings_for_a_fifth_of_the_rows() -> None:
    example = {"input": "1", "output": "1", "explanation": "same"}
    row = {
        "Definition": ["Add."],
        "Positive Examples": [example, example, example],
        "Negative Examples": [example, example, example],
        "input": "4",
        "output": ["4"],
    }
    format = with_options("natural_instructions", {"tk_instruct": True}, GIVEN)
    seen: dict[tuple[int, ...], int] = {}
    for number in range(2000):
        said = format(row, f"t.json:{number}").turns[0].text
        marks = ("Definition:", "Positive Example", "Negative Example", "Explanation:")
        kind = tuple(said.count(mark) for mark in marks)
        seen[kind] = seen.get(kind, 0) + 1
    assert set(seen) == {(1, 0, 0, 0), (0, 2, 0, 0), (1, 2, 0, 0), (1, 2, 2, 0), (1, 2, 0, 2)}
    assert all(320 < count < 480 for count in seen.values())  # 400 ± 4 standard deviations of 18


def test_pmc_vqa_draws_each_of_its_three_forms_for_a_third_of_the_rows() -> None:
    (row, *_) = (case["row"] for name, _, case in READABLE if name == "pmc_vqa")
    format = with_options("pmc_vqa", {}, GIVEN)
    forms = [format(row, f"t.csv:{number}").tags["form"] for number in range(1500)]
    assert all(430 < forms.count(form) < 570 for form in ("blank", "choices", "caption"))  # 500 ± 4 of 18


def test_options_are_shuffled_alike_each_time_and_otherwise_for_another_row() -> None:
    row = {"image_path": "a.jpg", "prompt": "What?", "target": "a", "options": list("abcdefgh")}
    format = with_options("multi_instruct", {}, GIVEN)
    said = [format(row, f"r:{number}").turns[0].text for number in (1, 1, 2)]
    assert said[0] == said[1] != said[2]
    assert sorted(said[0].split("[Options]: ")[1].split("||||")) == list("abcdefgh")
