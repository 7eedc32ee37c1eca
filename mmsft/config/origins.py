"""Where each value of a config was stated."""

from collections.abc import Iterator
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


def dotted(key: Key, raw: Any) -> str:
    """Returns the key as the command line takes it; ``the config`` for the whole.

    Args:
        key: a place in the config.
        raw: the config's plain values, which say what the items of its lists are called.
    """
    return ".".join(_names(key, raw)) or "the config"


def _names(key: Key, at: Any) -> Iterator[str]:
    for depth, part in enumerate(key):
        inside = isinstance(part, int) and isinstance(at, list) and part < len(at)
        # An item whose name is what the key is about goes by its number.
        yield _item_name(at, part) if inside and key[depth + 1 :] != ("name",) else str(part)
        at = at[part] if inside else at.get(part) if isinstance(at, dict) else None


def _item_name(items: list[Any], number: str | int) -> str:
    names = (name for name, index in item_numbers(items).items() if index == number and not name.isdigit())
    return next(names, str(number))


def item_numbers(items: list[Any]) -> dict[str, str | int]:
    """Returns number and name → number; a source without a name goes by its file's."""
    numbers: dict[str, str | int] = {str(number): number for number in range(len(items))}
    for number, item in enumerate(items):
        if isinstance(item, dict) and (name := item.get("name") or str(item.get("path", "")).rsplit("/", 1)[-1]):
            numbers.setdefault(str(name), number)
    return numbers
