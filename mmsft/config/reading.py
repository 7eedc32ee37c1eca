"""Reads a run's YAML with its overrides, and reports all problems at once."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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
    return _read(raw, path, overrides, resolvers, origins, problems)


def is_recipe(path: Path) -> bool:
    """Tells a recipe from a run config: it has sources and no stages.

    Raises:
        ConfigError: the file can't be read or isn't YAML.
    """
    raw = read_yaml(path, (), Origins(), [])
    return isinstance(raw, dict) and "sources" in raw and "stages" not in raw


def read_recipe(
    name: str, overrides: Sequence[str], resolvers: Resolvers, decoder: str, towers: Mapping[str, Any]
) -> tuple[RunConfig, Origins]:
    """Reads a recipe as the only stage, ``data``, of a run that isn't to train.

    Args:
        name: of the recipe in ``data_recipes/``, or its file.
        overrides: ``dotted.key=value`` strings with the recipe's keys.
        resolvers: as of `read_config`.
        decoder: whose tokenizer and template read the rows.
        towers: settings of the run's towers.

    Raises:
        ConfigError: there is no such recipe, or with every problem found in it.
    """
    stage = {"name": "data", "recipe": name, "train": {"decoder": {"lr": 1.0}}, "duration": "1 epochs"}
    raw = {
        "out": "runs/none",
        "model": {"decoder": {"name": decoder}, "towers": dict(towers)},
        "stages": [{**stage, "batch": "1 examples"}],
    }
    inside = [f"stages.data.recipe.{text}" for text in overrides]
    return _read(raw, Path(name), inside, resolvers, Origins(), [])


def _read(
    raw: dict[str, Any],
    path: Path,
    overrides: Sequence[str],
    resolvers: Resolvers,
    origins: Origins,
    problems: list[str],
) -> tuple[RunConfig, Origins]:
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
    reading = _Reading(raw, path, origins, problems)
    stages = raw.get("stages")
    for number, stage in enumerate(stages if isinstance(stages, list) else []):
        if isinstance(stage, dict):
            reading.inline(stage, ("stages", number, "recipe"), ())
    return reading.unread


@dataclass
class _Reading:
    """Recipes while they are put in the place of their names.

    Attributes:
        raw: the config.
        path: its file.
        origins: of its values.
        problems: found so far.
        unread: keys of recipes that could not be read.
    """

    raw: dict[str, Any]
    path: Path
    origins: Origins
    problems: list[str]
    unread: set[Key] = field(default_factory=set)

    def inline(self, holder: dict[str, Any], key: Key, around: tuple[Path, ...]) -> None:
        """Reads the recipe that a stage or a source names, and those that its sources name.

        Args:
            holder: has it under ``recipe``.
            key: its place in the config.
            around: the files that it is nested in.
        """
        name = holder.get("recipe")
        if isinstance(name, str):
            stated = self.origins.nearest(key)
            try:
                found = self._find(name, around)
                holder["recipe"] = read_yaml(found, key, self.origins, self.problems)
                around = (*around, found.resolve())
            except ConfigError as error:
                self.problems.append(f"{stated}: {dotted(key, self.raw)}: {error}")
                self.unread.add(key)
                del holder["recipe"]
                return
        recipe = holder.get("recipe")
        sources = recipe.get("sources") if isinstance(recipe, dict) else None
        for number, source in enumerate(sources if isinstance(sources, list) else []):
            if isinstance(source, dict) and "recipe" in source:
                self.inline(source, (*key, "sources", number, "recipe"), around)

    def _find(self, name: str, around: tuple[Path, ...]) -> Path:
        places = list(dict.fromkeys(_recipe_places(name, self.path)))
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            known = {file.stem for place in places for file in place.parent.glob("*.yaml")}
            looked = ", ".join(str(place.absolute()) for place in places)
            raise ConfigError(f"no recipe {name!r}{suggest(name, known)}; looked for {looked}")
        if found.resolve() in around:
            raise ConfigError(f"the recipe {name!r} is nested in itself; take it out of {around[-1]}")
        return found


def _recipe_places(name: str, config: Path) -> Iterator[Path]:
    if name.endswith((".yaml", ".yml")):
        yield Path(name)
        yield config.parent / name
    else:
        for folder in (Path(), config.parent, config.parent.parent):
            yield folder / "data_recipes" / f"{name}.yaml"
