"""A YAML file gives plain values with their lines; what is odd in it is said with its line."""

from pathlib import Path
from typing import Any

import pytest

from mmsft.config.document import parse_yaml, read_yaml
from mmsft.config.origins import Origins
from mmsft.errors import ConfigError


def build(text: str) -> tuple[Any, Origins, list[str]]:
    Path("x.yaml").write_text(text, encoding="utf-8")
    origins = Origins()
    problems: list[str] = []
    return read_yaml(Path("x.yaml"), (), origins, problems), origins, problems


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        (".5", 0.5),
        ("-1.", -1.0),
        ("-.inf", float("-inf")),
        ("12", 12),
        ("0x1f", 31),
        ("007", "007"),
        ("true", True),
        ("yes", "yes"),
        ("off", "off"),
        ("NO", "NO"),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("1_000", "1_000"),
        ("~", None),
        ("", None),
        ("'1e-3'", "1e-3"),
        ("!!str 12", "12"),
        ("[1, {a: b}]", [1, {"a": "b"}]),
        ("=", "="),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    parsed = parse_yaml(text)
    assert parsed == value
    assert type(parsed) is type(value)


def test_each_value_has_its_line() -> None:
    _, origins, _ = build("a: 1\nb:\n  - x\n  - {c: 2}\n")
    assert {key: place for key, place in origins.of.items() if key} == {
        ("a",): "x.yaml:1",
        ("b",): "x.yaml:3",
        ("b", 0): "x.yaml:3",
        ("b", 1): "x.yaml:4",
        ("b", 1, "c"): "x.yaml:4",
    }


def test_all_duplicate_keys_are_reported_and_the_first_is_kept() -> None:
    value, _, problems = build("a: 1\na: 2\nb: {c: 1, c: 2}\n")
    assert value == {"a": 1, "b": {"c": 1}}
    assert problems == ["x.yaml:2: 'a' is stated twice; keep one", "x.yaml:3: 'c' is stated twice; keep one"]


def test_anchors_and_merge_keys_work_as_in_pyyaml() -> None:
    value, origins, problems = build("a: &a {x: 1, y: 2}\nb: &b {y: 3, z: 4}\nc:\n  <<: [*a, *b]\n  x: 9\nd: *a\n")
    assert problems == []
    assert value["c"] == {"x": 9, "y": 2, "z": 4}
    assert value["d"] == {"x": 1, "y": 2}
    assert origins.find(("c", "z")) == "x.yaml:2"
    assert origins.find(("c", "x")) == "x.yaml:5"


def test_an_alias_inside_its_own_anchor_is_refused() -> None:
    assert "x.yaml:1: an alias stands inside its own anchor; write the value out" in build("a: &a [*a]")[2]


@pytest.mark.parametrize("text", ["a: &a\n  <<: *a\n", "a: {<<: 3}", "a: &a\n  b: {<<: *a}\n"])
def test_a_merge_of_anything_but_another_mapping_is_refused(text: str) -> None:
    assert any("`<<` takes a mapping, or a list of mappings" in problem for problem in build(text)[2])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: !!python/name:os.system x", "isn't a python/name:os.system"),
        ("a: !mine {b: 1}", "the tag '!mine' isn't known; remove it"),
        ("a: !!int x", "'x' isn't a int"),
        ("? [a, b]\n: 1", "a key must be text"),
    ],
)
def test_odd_entries_are_problems_with_a_line(text: str, said: str) -> None:
    problems = build(text)[2]
    assert len(problems) == 1
    assert problems[0].startswith("x.yaml:1: ")
    assert said in problems[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a:\n\tb: 1\n", r"x\.yaml:2: not valid YAML: .*indent with spaces, not with tabs"),
        ("a: [1\n", r"x\.yaml:2: not valid YAML: while parsing a flow sequence"),
        ("a: *b\n", r"x\.yaml:1: not valid YAML: found undefined alias 'b'"),
        ("a: 1\n---\nb: 2\n", r"x\.yaml:2: not valid YAML: expected a single document"),
        ("[" * 5000, r"x\.yaml: nested too deeply"),
    ],
)
def test_what_is_no_yaml_is_refused_in_one_line(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        build(text)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_utf8_or_is_a_folder_is_refused() -> None:
    Path("x.yaml").write_bytes(b"a: caf\xe9")
    with pytest.raises(ConfigError, match=r"x\.yaml: byte 6 isn't UTF-8"):
        read_yaml(Path("x.yaml"), (), Origins(), [])
    Path("folder.yaml").mkdir()
    with pytest.raises(ConfigError, match=r"folder\.yaml: can't be read: Is a directory"):
        read_yaml(Path("folder.yaml"), (), Origins(), [])
