"""Where each value of a config was stated."""

from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

Key: TypeAlias = tuple[str | int, ...]
COMMAND_LINE: Final = "command line"


@dataclass
class Origins:
    """The origin of each stated value: ``file.yaml:12`` or ``command line``."""

    of: dict[Key, str] = field(default_factory=dict)

    def find(self, key: Key) -> str:
        """Returns the origin of a value; ``default`` for what nobody stated."""
        return self.of.get(key, "default")

    def nearest(self, key: Key) -> str:
        """Returns the origin of the value or, failing that, of what encloses it."""
        while key and key not in self.of:
            key = key[:-1]
        return self.of.get(key, COMMAND_LINE)

    def restate(self, key: Key, value: Any) -> None:
        """Notes that the command line replaced the value, with all that was in it."""
        self.of = {old: place for old, place in self.of.items() if old[: len(key)] != key}
        self._state(key, value)

    def _state(self, key: Key, value: Any) -> None:
        self.of[key] = COMMAND_LINE
        children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for name, child in children:
            self._state((*key, name), child)


def dotted(key: Key) -> str:
    """Returns the key as it is written on the command line; ``the config`` for the whole."""
    return ".".join(map(str, key)) or "the config"


def kind_of(value: Any) -> str:
    """Returns what a YAML value is, in words."""
    names = {dict: "a mapping", list: "a list", str: "text", bool: "true or false", type(None): "empty"}
    return names.get(type(value), "a number")
