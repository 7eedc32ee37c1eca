"""A YAML file as plain values, with the line that each of them stands on."""

import re
from pathlib import Path
from typing import Any, Final

import yaml

from mmsft.config.origins import Key, Origins
from mmsft.errors import ConfigError, suggest

_TAG: Final = "tag:yaml.org,2002:"
_MERGE: Final = f"{_TAG}merge"


class _Loader(yaml.SafeLoader):
    """Scalars as in YAML 1.2: ``1e-3`` is a number, ``yes``, ``on``, ``12:30`` and ``2024-01-01`` are text."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012 - PyYAML's own way


for _name, _form, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.(?:inf|Inf)|\.(?:nan|NaN)",
        "-+.0123456789",
    ),
    ("merge", "<<", "<"),
):
    _Loader.add_implicit_resolver(f"{_TAG}{_name}", re.compile(f"^(?:{_form})$"), list(_first))


def read_yaml(path: Path, base: Key, origins: Origins, problems: list[str]) -> Any:
    """Reads a file.

    Args:
        path: the file.
        base: the key under which its values stand in the config.
        origins: takes the file and line of each value.
        problems: takes what is wrong with single entries, e.g. a key that is stated twice.

    Raises:
        ConfigError: the file can't be read or isn't YAML.
    """
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=_Loader)
        return None if node is None else _Builder(path, origins, problems).build(node, base)
    except FileNotFoundError:
        near = [str(other) for other in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        looked = "" if path.is_absolute() else f"; looked for {path.absolute()}"
        raise ConfigError(f"{path}: no such file{suggest(str(path), near)}{looked}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} isn't UTF-8; save the file as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from None
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply for a config; flatten it") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}{_explain(error)}") from None


def parse_yaml(text: str) -> Any:
    """Returns the value that a piece of YAML states.

    Raises:
        ValueError: it isn't YAML.
    """
    problems: list[str] = []
    try:
        node = yaml.compose(text, Loader=_Loader)
        value = None if node is None else _Builder(Path("value"), Origins(), problems).build(node, ())
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"the value{_explain(error).removeprefix(':1')}") from None
    if problems:
        raise ValueError(problems[0])
    return value


def _explain(error: yaml.YAMLError | RecursionError) -> str:
    mark = getattr(error, "problem_mark", None)
    reason = getattr(error, "problem", None) or str(error)
    place = f":{mark.line + 1}" if mark else ""
    if "'\\t'" in reason:
        reason += "; indent with spaces, not with tabs"
    context = getattr(error, "context", None)
    return f"{place}: not valid YAML: {f'{context}, ' if context else ''}{reason}"


class _Builder:
    """Turns YAML nodes into values and notes their lines."""

    def __init__(self, path: Path, origins: Origins, problems: list[str]) -> None:
        self.path = path
        self.origins = origins
        self.problems = problems
        self.open: list[yaml.Node] = []

    def build(self, node: yaml.Node, key: Key) -> Any:
        """Returns the node's value, which stands under `key`."""
        self.origins.of[key] = self._place(node)
        if any(node is outer for outer in self.open):
            self.problems.append(f"{self._place(node)}: an alias stands inside its own anchor; write the value out")
            return None
        self.open.append(node)
        try:
            return self._value(node, key)
        finally:
            self.open.pop()

    def _value(self, node: yaml.Node, key: Key) -> Any:
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        if node.tag not in (f"{_TAG}map", f"{_TAG}seq"):
            self.problems.append(f"{self._place(node)}: the tag {node.tag!r} isn't known; remove it")
            return None
        if isinstance(node, yaml.MappingNode):
            entries = self._entries(node)
            return {name: self.build(value, (*key, name)) for name, value in entries.items()}
        return [self.build(value, (*key, index)) for index, value in enumerate(node.value)]

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        try:
            return _Loader("").construct_object(node)
        except (yaml.YAMLError, ValueError):
            self.problems.append(f"{self._place(node)}: {node.value!r} isn't a {node.tag.removeprefix(_TAG)}")
            return None

    def _entries(self, node: yaml.MappingNode) -> dict[str, yaml.Node]:
        merged: dict[str, yaml.Node] = {}
        own: dict[str, yaml.Node] = {}
        for name, value in node.value:
            if name.tag == _MERGE:
                merged = {**self._merged(value, node), **merged}
            elif not isinstance(name, yaml.ScalarNode):
                self.problems.append(f"{self._place(name)}: a key must be text")
            elif name.value in own:
                self.problems.append(f"{self._place(name)}: {name.value!r} is stated twice; keep one")
            else:
                own[name.value] = value
        return {**merged, **own}

    def _merged(self, node: yaml.Node, into: yaml.Node) -> dict[str, yaml.Node]:
        parts = node.value if isinstance(node, yaml.SequenceNode) else [node]
        merged: dict[str, yaml.Node] = {}
        for part in parts:
            if not isinstance(part, yaml.MappingNode) or part is into or part in self.open:
                self.problems.append(f"{self._place(node)}: `<<` takes a mapping, or a list of mappings")
                continue
            merged = {**self._entries(part), **merged}
        return merged

    def _place(self, node: yaml.Node) -> str:
        return f"{self.path}:{node.start_mark.line + 1}"
