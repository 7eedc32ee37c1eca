"""Reads a run's YAML with its overrides, and reports all problems at once."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import ValidationError

from mmsft.config.document import read_yaml
from mmsft.config.origins import Key, Origins, dotted
from mmsft.config.overrides import override
from mmsft.config.run import RunConfig
from mmsft.config.schema import known_keys
from mmsft.config.values import Spec
from mmsft.config.wording import kind_of, wrong
from mmsft.errors import ConfigError, suggest

Resolvers: TypeAlias = Mapping[str, Callable[[Mapping[str, Any]], Spec]]
"""For "modality" and "adapter": a function from the mapping in the config to the spec; raises ValueError."""


def read_config(path: Path, overrides: Sequence[str], resolvers: Resolvers) -> tuple[RunConfig, Origins]:
    """Reads a run config.

    Args:
        path: the YAML file.
        overrides: ``dotted.key=value`` strings; the value is YAML, lists are indexed by number or by a stage's name.
        resolvers: build the parts that are chosen by `kind`.

    Raises:
        ConfigError: with every problem found, each with file and line, key, value and way out.
    """
    origins = Origins()
    problems: list[str] = []
    raw = read_yaml(path, (), origins, problems)
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: a run config is a mapping, this is {kind_of(raw)}")
    into_recipes = [text for text in overrides if ".recipe." in text.partition("=")[0]]
    for text in overrides:
        if text not in into_recipes:
            override(raw, text, origins, problems)
    unread = _inline_recipes(raw, path, origins, problems)
    for text in into_recipes:
        override(raw, text, origins, problems)
    config = _validate(raw, origins, resolvers, unread, problems)
    if config is None or problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise ConfigError(f"{path}: {count}\n" + "\n".join(f"  - {problem}" for problem in problems))
    return config, origins


def _validate(
    raw: dict[str, Any], origins: Origins, resolvers: Resolvers, unread: set[Key], problems: list[str]
) -> RunConfig | None:
    try:
        return RunConfig.model_validate(raw, context=resolvers)
    except ValidationError as error:
        for item in error.errors(include_url=False):
            key = tuple(part for part in item["loc"] if part != "[key]")
            if key not in unread and not _follows_from_others(item):
                problems.append(f"{origins.nearest(key)}: {dotted(key, raw)}: {_explain(item, key)}")
        return None


def _follows_from_others(item: Any) -> bool:
    """Pydantic counts a list's valid items only: one with a problem of its own is "too short" as well."""
    return bool(item["type"] == "too_short" and len(item["input"]) >= item["ctx"]["min_length"])


def _explain(item: Any, key: Key) -> str:
    if item["type"] == "extra_forbidden":
        known = known_keys(key[:-1])
        return f"unknown key{suggest(str(key[-1]), known)}; known here: {', '.join(sorted(known))}"
    if item["type"] == "model_type":
        return f"should be a mapping with {', '.join(known_keys(key))}, this is {kind_of(item['input'])}"
    return wrong(item)


def _inline_recipes(raw: dict[str, Any], path: Path, origins: Origins, problems: list[str]) -> set[Key]:
    """Puts recipes in the place of their names; returns the keys of those that could not be read."""
    unread: set[Key] = set()
    stages = raw.get("stages")
    for number, stage in enumerate(stages if isinstance(stages, list) else []):
        name = stage.get("recipe") if isinstance(stage, dict) else None
        if not isinstance(name, str):
            continue
        key: Key = ("stages", number, "recipe")
        stated = origins.nearest(key)
        places = list(dict.fromkeys(_recipe_places(name, path)))
        found = next((place for place in places if place.is_file()), None)
        try:
            if found is None:
                known = {file.stem for place in places for file in place.parent.glob("*.yaml")}
                looked = ", ".join(str(place.absolute()) for place in places)
                raise ConfigError(f"no recipe {name!r}{suggest(name, known)}; looked for {looked}")
            stage["recipe"] = read_yaml(found, key, origins, problems)
        except ConfigError as error:
            problems.append(f"{stated}: {dotted(key, raw)}: {error}")
            unread.add(key)
            del stage["recipe"]
    return unread


def _recipe_places(name: str, config: Path) -> Iterator[Path]:
    if name.endswith((".yaml", ".yml")):
        yield Path(name)
        yield config.parent / name
    else:
        for folder in (Path(), config.parent, config.parent.parent):
            yield folder / "data_recipes" / f"{name}.yaml"
