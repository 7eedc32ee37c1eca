"""A dumped config reads back to the same values."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmsft.config import RunConfig, Spec, dump_config, read_config
from mmsft.config.origins import Origins
from tests.config.small import RUN, Fake, read, swapped

Mappings: TypeAlias = st.SearchStrategy[dict[str, Any]]


def mapping(required: Mapping[str, Any], optional: Mapping[str, Any] | None = None) -> Mappings:
    return st.fixed_dictionaries(dict(required), optional=dict(optional or {}))


# Surrogates can't be encoded, so no file and no command line can state them.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
names = texts.filter(bool)
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
positive = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
units = st.sampled_from(["steps", "tokens", "examples"])
amounts = st.builds(lambda number, unit: f"{number} {unit}", st.integers(1, 10**18), units) | st.builds(
    lambda number: f"{number!r} epochs", positive
)
sources = mapping(
    {"path": names, "format": names, "name": names},
    {"tags": st.lists(texts), "where": st.dictionaries(texts, st.lists(texts))},
)
recipes = mapping(
    {"sources": st.lists(sources, min_size=1, max_size=3, unique_by=lambda source: str(source["name"]))},
    {"template_kwargs": st.dictionaries(texts, values, max_size=3), "length": st.integers(2, 10**12)},
)
stages = mapping(
    {
        "recipe": recipes,
        "train": st.dictionaries(texts, mapping({"lr": positive}), min_size=1, max_size=3),
        "duration": amounts,
        "batch": st.just("3 examples"),
    },
    {"clip": st.none() | positive, "schedule": mapping({"warmup": st.floats(0, 0.99)})},
)
configs: Mappings = st.builds(
    lambda out, stages: {
        "out": out,
        "model": {"decoder": {"name": out}},
        "stages": [{"name": f"s{number}", **stage} for number, stage in enumerate(stages)],
    },
    names,
    st.lists(stages, min_size=1, max_size=2),
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(configs)
def test_any_config_reads_back_to_itself(raw: dict[str, Any]) -> None:
    config = RunConfig.model_validate(raw)
    text = dump_config(config, Origins())
    Path("dumped.yaml").write_text(text, encoding="utf-8", newline="")
    again, _ = read_config(Path("dumped.yaml"), (), {})
    assert again == config
    assert dump_config(again, Origins()) == text


def test_a_config_with_towers_reads_back_to_itself_and_states_what_was_default() -> None:
    config, origins = read()
    again, _ = read(dump_config(config, origins))
    assert again == config
    assert again.model.towers["image"].adapter == Spec("fake", Fake(3))


def test_each_value_is_followed_by_its_origin() -> None:
    config, origins = read(swapped(("r: 4", "r: 4, targets: q_proj")), "seed=3", "loggers=[tensorboard]")
    lines = dump_config(config, origins).splitlines()
    for line in (
        "seed: 3  # command line",
        '  - "tensorboard"  # command line',
        '        - "q_proj"  # run.yaml:3',
        "      dropout: 0.0  # default",
        "    - 0.9  # default",
        '        - path: "data/b.json"  # data_recipes/mix.yaml:3',
        '      "towers.image.adapter":',
        "        lr: 0.001  # run.yaml:9",
        "        width: 3  # run.yaml:5",
    ):
        assert any(found.endswith(line) for found in lines), line


def test_the_whole_dump_has_one_origin_a_value() -> None:
    config, origins = read(RUN)
    body = dump_config(config, origins).splitlines()[2:]
    assert all(("  # " in line) != line.endswith(":") for line in body)
