"""Reads a run's YAML with its overrides, keeps each value's origin, and reports all problems at once."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, get_args

import yaml
from pydantic import BaseModel, ValidationError

from mmsft.config.models import RunConfig, Spec
from mmsft.errors import ConfigError, suggest

Key: TypeAlias = tuple[str | int, ...]
Resolvers: TypeAlias = Mapping[str, Callable[[Mapping[str, Any]], Spec]]
"""For "modality" and "adapter": a function from the mapping in the config to the spec; raises ValueError."""


@dataclass
class Origins:
    """Where each value of a config was stated: ``file.yaml:12`` or ``command line``."""

    of: dict[Key, str] = field(default_factory=dict)

    def find(self, key: Key) -> str:
        """Returns the origin of a value or of the nearest mapping around it; ``default`` for what nobody stated."""
        return self.of.get(key, "default")

    def nearest(self, key: Key) -> str:
        """Returns the origin of the value or, failing that, of what encloses it."""
        while key and key not in self.of:
            key = key[:-1]
        return self.of.get(key, "")


def read_config(path: Path, overrides: Sequence[str], resolvers: Resolvers) -> tuple[RunConfig, Origins]:
    """Reads a run config.

    Args:
        path: the YAML file.
        overrides: ``dotted.key=value`` strings; the value is YAML, lists are indexed by number or by a stage's name.
        resolvers: build the parts that are chosen by `kind`.

    Raises:
        ConfigError: with every problem found, each with key, value, origin and way out.
    """
    origins = Origins()
    raw = _read_yaml(path, (), origins)
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: a run config is a mapping, this is {_kind(raw)}")
    problems: list[str] = []
    for override in overrides:
        _override(raw, override, origins, problems)
    _inline_recipes(raw, path, origins, problems)
    config = _validate(raw, origins, resolvers, problems)
    if config is None or problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise ConfigError(f"{path}: {count}\n" + "\n".join(f"  - {problem}" for problem in problems))
    return config, origins


def _validate(raw: dict[str, Any], origins: Origins, resolvers: Resolvers, problems: list[str]) -> RunConfig | None:
    try:
        return RunConfig.model_validate(raw, context=resolvers)
    except ValidationError as error:
        for item in error.errors():
            problems.append(_explain(item, origins))
        return None


def _explain(item: Any, origins: Origins) -> str:
    key: Key = tuple(part for part in item["loc"] if not _is_union_tag(part))
    name = ".".join(map(str, key)) or "config"
    place = origins.nearest(key)
    message: str = item["msg"].removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        known = _known_keys(key[:-1])
        message = f"unknown key{suggest(str(key[-1]), known)}; known here: {', '.join(sorted(known))}"
    elif item["type"] == "missing":
        message = "required, and not given"
    elif "\n" not in message and not isinstance(item["input"], dict | list) and repr(item["input"]) not in message:
        message = f"{message}, got {item['input']!r}"
    return f"{name}: {message}" + (f"  [{place}]" if place else "")


def _is_union_tag(part: str | int) -> bool:
    return isinstance(part, str) and ("[" in part or part in {"float", "constrained-float"})


def _known_keys(key: Key) -> list[str]:
    model: Any = RunConfig
    for part in key:
        if isinstance(model, type) and issubclass(model, BaseModel):
            model = model.model_fields[str(part)].annotation if part in model.model_fields else None
        else:
            model = (get_args(model) or (None,))[-1 if isinstance(part, str) else 0]
        model = next((arg for arg in get_args(model) if _is_model(arg)), model) if not _is_model(model) else model
    return list(model.model_fields) if _is_model(model) else []


def _is_model(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, BaseModel)


def _kind(value: Any) -> str:
    return {dict: "a mapping", list: "a list", str: "text", type(None): "empty"}.get(type(value), type(value).__name__)


def _read_yaml(path: Path, base: Key, origins: Origins) -> Any:
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except FileNotFoundError:
        near = [str(other) for other in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise ConfigError(f"{path}: no such file{suggest(str(path), near)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: can't be read: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    return None if node is None else _build(node, path, base, origins)


def _build(node: yaml.Node, path: Path, key: Key, origins: Origins) -> Any:
    origins.of[key] = f"{path}:{node.start_mark.line + 1}"
    if isinstance(node, yaml.MappingNode):
        result: dict[Any, Any] = {}
        for name_node, value in node.value:
            name = name_node.value
            if name in result:
                raise ConfigError(f"{path}:{name_node.start_mark.line + 1}: {name!r} is stated twice; keep one")
            result[name] = _build(value, path, (*key, name), origins)
        return result
    if isinstance(node, yaml.SequenceNode):
        return [_build(value, path, (*key, index), origins) for index, value in enumerate(node.value)]
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_object(node)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}:{node.start_mark.line + 1}: {error}") from None


def _override(raw: dict[str, Any], text: str, origins: Origins, problems: list[str]) -> None:
    dotted, equals, value = text.partition("=")
    if not equals or not dotted:
        problems.append(f"{text!r}: an override is key=value, e.g. seed=1 or stages.align.duration='100 steps'")
        return
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        problems.append(f"{text!r}: the value isn't YAML: {error}")
        return
    at: Any = raw
    key: Key = ()
    parts = _split(dotted, raw)
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        if isinstance(at, list):
            index = _index(at, part)
            if index is None:
                names = [item.get("name", i) if isinstance(item, dict) else i for i, item in enumerate(at)]
                problems.append(f"{text!r}: no {part!r} in {'.'.join(map(str, key))}; there are {names}")
                return
            part = index  # noqa: PLW2901
        elif not isinstance(at, dict):
            problems.append(f"{text!r}: {'.'.join(map(str, key))} is {_kind(at)} and has no {part!r}")
            return
        key = (*key, part)
        if last:
            at[part] = parsed
            origins.of = {old: place for old, place in origins.of.items() if old[: len(key)] != key}
            origins.of[key] = "command line"
        else:
            at = at.setdefault(part, {}) if isinstance(at, dict) else at[int(part)]


def _split(dotted: str, raw: Any) -> list[Any]:
    """Splits at dots, but keeps a key that itself has dots, as those of `train` do."""
    parts: list[Any] = []
    rest = dotted.split(".")
    at = raw
    while rest:
        width = 1
        if isinstance(at, dict):
            width = next((n for n in range(len(rest), 1, -1) if ".".join(rest[:n]) in at), 1)
        part = ".".join(rest[:width])
        parts.append(part)
        rest = rest[width:]
        index = _index(at, part) if isinstance(at, list) else None
        at = at[index] if index is not None else at.get(part) if isinstance(at, dict) else None
    return parts


def _index(items: list[Any], part: Any) -> int | None:
    for number, item in enumerate(items):
        if str(number) == str(part) or (isinstance(item, dict) and item.get("name") == part):
            return number
    return None


def _inline_recipes(raw: dict[str, Any], path: Path, origins: Origins, problems: list[str]) -> None:
    stages = raw.get("stages")
    for number, stage in enumerate(stages if isinstance(stages, list) else []):
        name = stage.get("recipe") if isinstance(stage, dict) else None
        if not isinstance(name, str):
            continue
        key: Key = ("stages", number, "recipe")
        places = list(_recipe_places(name, path))
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            known = {file.stem for place in places for file in place.parent.glob("*.yaml")}
            looked = ", ".join(str(place) for place in places)
            problems.append(f"stages.{number}.recipe: no recipe {name!r}{suggest(name, known)}; looked for {looked}")
            stage["recipe"] = {"sources": [{"path": name, "format": "llava"}]}
            continue
        stage["recipe"] = _read_yaml(found, key, origins)


def _recipe_places(name: str, config: Path) -> Iterable[Path]:
    if name.endswith((".yaml", ".yml")):
        yield Path(name)
        yield config.parent / name
    else:
        for folder in dict.fromkeys((Path(), config.parent, config.parent.parent)):
            yield folder / "data_recipes" / f"{name}.yaml"


def dump_config(config: RunConfig, origins: Origins) -> str:
    """Returns the resolved config as YAML that `read_config` reads back, each value followed by its origin."""
    lines = ["# The resolved configuration of this run; behind each value, where it was stated.", ""]
    lines += _dump(config.model_dump(mode="json"), (), origins, 0)
    return "\n".join(lines) + "\n"


def _dump(value: Any, key: Key, origins: Origins, depth: int) -> list[str]:
    pad = "  " * depth
    items = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
    lines: list[str] = []
    for name, child in items:
        head = f"{pad}{json.dumps(name) if isinstance(name, str) else '-'}{':' if isinstance(name, str) else ''}"
        if isinstance(child, dict | list) and child:
            lines += [head, *_dump(child, (*key, name), origins, depth + 1)]
        else:
            origin = origins.nearest((*key, name)) if isinstance(value, list) else origins.find((*key, name))
            lines.append(f"{head} {json.dumps(child, ensure_ascii=False)}  # {origin}")
    return lines
