"""The script that renders PromptSource's templates: it tells fields by their use, and says what doesn't render."""

from pathlib import Path

import pytest
from jinja2 import Environment

from scripts.promptsource import main, outcomes
from scripts.template_fields import fields_of, rows_of
from tests.makers import fetched

TEMPLATES = """
dataset: toy
templates:
  1: !Template
    answer_choices: no ||| yes
    jinja: '{{premise}} {% for each in said %}{{each.who}}{% endfor %} ||| {{answer_choices[label]}}'
    name: indexes
  2: !Template
    answer_choices: null
    jinja: '{% if kind == "rare" %}{{text.split("//")[2]}} ||| {{ {"x": 5}[key] }}{{ number | round }}{% endif %}'
    name: compares
  3: !Template
    answer_choices: null
    jinja: 'A question. {{ 1 / 0 }} ||| a'
    name: fails
"""


def test_kinds_of_fields_are_told_from_their_use() -> None:
    source = "{{a[0]}}{{b.c}}{{d | lower}}{% for e in f %}{{e}}{% endfor %}{{g + 1}}{{['x', 'y'].index(h)}}{{c}}"
    row = next(rows_of(fields_of(Environment(), source, ""), 1))
    kinds = {name: type(value).__name__ for name, value in row.items()}
    assert kinds == dict.fromkeys("af", "list") | {"b": "dict", "d": "str", "g": "int", "h": "str", "c": "str"}
    assert row["h"] == "x"


def test_each_template_is_counted_with_the_reason_of_one_that_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "templates.yaml").write_text(TEMPLATES)
    assert [(it.name, it.same) for it in outcomes(tmp_path)] == [("indexes", True), ("compares", True), ("fails", None)]
    main([str(tmp_path)])
    said = capsys.readouterr().out
    assert "3 templates in 1 files\n2 render, 0 of them on rows with a value made by hand; 1 don't\n" in said
    assert "toy, 'fails': row: the wording 'fails' fails on it: " in said


@pytest.mark.assets
def test_templates_of_promptsource_render_and_give_what_it_gives() -> None:
    """A tenth of the files; `python -m scripts.promptsource` takes all."""
    root = fetched("promptsource")
    assert len(list(root.rglob("*.yaml"))) == 279
    found = list(outcomes(root, step=10))
    assert len(found) > 150
    assert [(it.name, it.why) for it in found if it.why] == []
    assert {it.same for it in found} <= {True, None}
