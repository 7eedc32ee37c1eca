"""Templates as data: what they render, how a wording is chosen, and what becomes of rows that none fits."""

import json
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmsft.data.wordings import NoTarget, Wording, Wordings, read_wordings
from mmsft.errors import ConfigError, DataError
from mmsft.types import Media
from tests.makers import opened, picture, write_rows

ASK = Wording("ask", "{{question}} ||| {{answer}}")
TELL = Wording("tell", "Tell me: {{question}} ||| {{ answer }}")
PROMPTSOURCE = """
dataset: toy
templates:
  1-2-3: !Template
    answer_choices: no ||| yes
    id: 1-2-3
    jinja: 'Is it {{text}}? ||| {{answer_choices[label]}}'
    metadata: !TemplateMetadata
      choices_in_prompt: false
      languages: [en]
      metrics: [Accuracy]
      original_task: true
    name: is it
    reference: ''
"""


def test_question_and_answer_are_parted_once_and_stripped() -> None:
    question, answer, choices = ASK.render({"question": " a ||| b", "answer": "c ||| d "}, "r:1")
    assert (question, answer, choices) == ("a ||| b", "c ||| d", ())


def test_a_file_of_promptsource_is_read_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "templates.yaml"
    file.write_text(PROMPTSOURCE)
    (wording,) = read_wordings(file)
    assert wording.render({"text": "wet", "label": 1}, "r:1") == ("Is it wet?", "yes", ("no", "yes"))


def test_the_filters_of_promptsource_are_there_and_a_draw_is_the_rows() -> None:
    wording = Wording("w", "{{ items | most_frequent | join(',') }} ||| {{ items | choice }}")
    record = {"items": ["a", "b", "a", "c", "b"]}
    drawn = [wording.render(record, f"r:{number}") for number in range(60)]
    assert {question for question, _, _ in drawn} == {"a,b"}
    assert {answer for _, answer, _ in drawn} == {"a", "b", "c"}
    assert drawn == [wording.render(record, f"r:{number}") for number in range(60)]


def test_two_draws_in_one_template_are_independent_and_random_is_one_of_them() -> None:
    wording = Wording("w", "{{ items | choice }}{{ items | random }} ||| a")
    drawn = [wording.render({"items": ["a", "b"]}, f"r:{number}")[0] for number in range(200)]
    assert all(30 < drawn.count(pair) < 70 for pair in ("aa", "ab", "ba", "bb"))  # 50 ± 3 of 6
    assert drawn == [wording.render({"items": ["a", "b"]}, f"r:{number}")[0] for number in range(200)]


def test_what_is_written_of_a_field_is_cut_and_what_is_done_with_it_is_not() -> None:
    """As PromptSource does: behind the words that fit into 2,048 characters; answer choices aren't cut."""
    long = "word " * 1000 + "| end"
    cut = Wording("w", "{{text}} ||| {{text.split('|')[1]}}{{answer_choices[999]}}", "{{text | replace(' ', ' ||| ')}}")
    question, answer, choices = cut.render({"text": long}, "r:1")
    assert (len(question), question[-8:], answer) == (2047, " word...", "endword")
    assert len(choices) == 1002


def test_a_template_may_collect_words_in_lists_and_changes_no_row_by_that() -> None:
    jinja = "{% set found = [] %}{% for a, b in zip(one, two) %}{{ found.append(a + b) or '' }}{% endfor %}"
    wording = Wording(
        "w", jinja + "{{ one.pop() }}{% do row.update({'x': 2}) %} ||| {{ found | join(' ') }}{{ row.x }}"
    )
    record = {"one": ["a", "b"], "two": ["c", "d"], "row": {"x": 1}}
    for _ in range(2):
        assert wording.render(record, "r:1")[:2] == ("b", "ac bd2")
    assert record == {"one": ["a", "b"], "two": ["c", "d"], "row": {"x": 1}}


@pytest.mark.parametrize("jinja", ["{{question}}", "{{question}} |||", "{% if false %}a ||| b{% endif %}"])
def test_a_wording_without_an_answer_does_not_apply(jinja: str) -> None:
    with pytest.raises(NoTarget, match="r:1: the wording 'w' gives it no answer"):
        Wording("w", jinja).render({"question": "q"}, "r:1")


@pytest.mark.parametrize(
    "jinja",
    [
        "{{nobody}} ||| a",
        "{{question.__class__.__mro__}} ||| a",
        "{{ ''.__class__.__base__.__subclasses__() }} ||| a",
        "{{ question[0][3][9] }} ||| a",
        "{{ 1 / 0 }} ||| a",
        "{% for i in range(999999999) %}x{% endfor %} ||| a",
    ],
)
def test_a_wording_that_fails_or_reaches_out_of_its_sandbox_is_the_rows_failure(jinja: str) -> None:
    with pytest.raises(DataError, match="r:1: the wording 'w' fails on it"):
        Wording("w", jinja).render({"question": "q"}, "r:1")


def test_one_wording_is_drawn_for_a_row_and_named_on_it() -> None:
    read = pickle.loads(pickle.dumps(Wordings((ASK, TELL))))
    drawn = [read({"question": "q", "answer": "a"}, f"r:{number}") for number in range(400)]
    counts = Counter(talk.tags["wording"] for talk in drawn)
    assert all(150 < count < 250 for count in counts.values())  # 200 ± 5 of 10
    assert all(talk.turns[0].text == ("q" if talk.tags["wording"] == "ask" else "Tell me: q") for talk in drawn)
    again = [read({"question": "q", "answer": "a"}, f"r:{number}").tags for number in range(400)]
    assert again == [talk.tags for talk in drawn]


def test_all_wordings_are_branches_of_one_conversation() -> None:
    blank = Wording("blank", "{{question}}")
    talk = Wordings((ASK, blank, TELL), "all")({"question": "q", "answer": "a"}, "r:1")
    assert talk.threads() == ((0, 1), (2, 3))
    with pytest.raises(NoTarget):
        Wordings((blank,), "all")({"question": "q"}, "r:1")


def recipe(folder: Path, use: str, **changes: Any) -> dict[str, Any]:
    file = folder / "wordings.yaml"
    listed = [
        {"name": "ask", "jinja": "<image>{{question}} ||| {{answer}}"},
        {"name": "tell", "jinja": "<image>Tell: {{question}} ||| {{answer}}", "system": "S"},
    ]
    file.write_text(yaml.safe_dump(listed))
    picture(folder / "a.png", "red")
    rows = [{"image": "a.png", "question": f"q{number}", "answer": "a"} for number in range(4)]
    path = write_rows(folder / "rows.jsonl", rows)
    return {"sources": [{"path": str(path), "templates": {"file": str(file), "use": use}, **changes}]}


def test_with_each_a_row_comes_once_for_each_wording(tmp_path: Path) -> None:
    mixture = opened(recipe(tmp_path, "each"))
    talks = [mixture.conversation(pair) for pair in mixture.train]
    assert [talk.tags["wording"] for talk in talks] == ["ask", "tell"] * 4
    assert talks[3].id == "rows.jsonl:2 (tell)"
    assert talks[3].turns[0].text == "S"
    assert isinstance(talks[3].turns[1].parts[0], Media)


def test_questions_on_one_picture_stay_on_one_side_of_a_split_with_templates_too(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="rows with a picture in common stay together, and 4"):
        opened({**recipe(tmp_path, "drawn"), "validation": {"fraction": 0.5}})


def test_columns_are_renamed_for_templates(tmp_path: Path) -> None:
    made = recipe(tmp_path, "drawn", columns={"answer": "reply"})
    file = tmp_path / "rows.jsonl"
    file.write_text(file.read_text().replace('"answer"', '"reply"'))
    mixture = opened(made)
    assert mixture.conversation(mixture.train[0]).turns[-1].text == "a"
    made["sources"][0]["columns"] = {"answer": "rply"}
    with pytest.raises(ConfigError, match=r"no row that was looked at has a column 'rply' \(did you mean 'reply'\?\)"):
        opened(made)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- {name: a, jinja: '{{ x'}", "'a': not valid Jinja"),
        ("- {name: a}", "template 1: needs a name and a jinja text"),
        ("- {name: a, jinja: x ||| y}\n- {name: a, jinja: x ||| y}", "two templates are named 'a'"),
        ("5", "should be a list of templates"),
        ("[]", "has no templates"),
        ("a: [", "can't be read as YAML"),
        ("!!python/object/apply:os.system ['true']", "can't be read as YAML"),
    ],
)
def test_templates_that_can_not_be_read_are_refused(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "t.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=says):
        read_wordings(file)


def test_a_missing_file_or_name_is_refused_with_the_nearest(tmp_path: Path) -> None:
    file = tmp_path / "templates.yaml"
    file.write_text(json.dumps([{"name": "ask", "jinja": "a ||| b"}]))
    with pytest.raises(ConfigError, match=r"no such file \(did you mean 'templates.yaml'\?\)"):
        read_wordings(tmp_path / "template.yaml")
    with pytest.raises(ConfigError, match=r"no template 'aks' \(did you mean 'ask'\?\)"):
        read_wordings(file, ["aks"])
